# Fovea: `make run` shows the whole system in small on this machine; `make test` proves it.
CARGO ?= cargo
# Backend mpi where this machine can build it: tried whenever a command needs the answer, never remembered.
FEATURES = $(shell scripts/features.sh)
FOVEA := $(or $(CARGO_TARGET_DIR),target)/release/fovea
DEMO := demo
SYSTEMS := systems

ifeq ($(wildcard scripts/setup.sh),)
$(error make runs in Fovea's own folder: make -C FOLDER $(MAKECMDGOALS))
endif

.PHONY: help setup build run systems test test-all chaos fuzz bench gpu-check fresh lint clean

help:
	@echo "make run    set up, build, then train the hybrid model on a synthetic dataset (CPU, minutes)"
	@echo "make systems  all five systems in small, on drawn data: trains, evaluates, prints one table (minutes)"
	@echo "make test   set up, then all tests"
	@echo "make chaos  200 faults in real runs: what each cost, and that none changed the result"
	@echo "make fuzz   100,000 damaged pictures and tables: no panic, no unbounded memory, no wrong sizes"
	@echo "make bench  training step against PyTorch DDP, prepare, kernels (fetches PyTorch into .venv-bench)"
	@echo "make gpu-check  all checks and measurements that need a GPU; builds and fetches nothing"
	@echo "make fresh  make run and make test from a clean clone on a minimal Debian in a folder (as root)"
	@echo "make setup  system packages (as root), libtorch, release build"
	@echo "make lint   rustfmt, clippy, and cargo-deny where it is installed"

setup:
	@scripts/setup.sh
	@$(MAKE) --no-print-directory build

build:
	$(CARGO) build --release --locked $(FEATURES)

run:
	@scripts/estimate.sh
	@$(MAKE) --no-print-directory setup
	@DEMO="$(DEMO)" FOVEA="$(FOVEA)" scripts/demo.sh

systems: setup
	@SYSTEMS="$(SYSTEMS)" FOVEA="$(FOVEA)" scripts/systems.sh

test: setup
	@$(MAKE) --no-print-directory test-all

test-all:
	@CARGO="$(CARGO)" scripts/test.sh $(FEATURES)

# A storm of faults over real runs; CHAOS_FAULTS and CHAOS_SEED choose another one.
CHAOS_FAULTS ?= 200
CHAOS_SEED ?= 1

chaos: setup
	FOVEA_CHAOS_FAULTS=$(CHAOS_FAULTS) FOVEA_CHAOS_SEED=$(CHAOS_SEED) \
	    $(CARGO) test --release --locked $(FEATURES) --test chaos -- --ignored --nocapture

# Damaged pictures and tables; FUZZ_INPUTS and FUZZ_SEED choose others.
FUZZ_INPUTS ?= 100000
FUZZ_SEED ?= 1

fuzz:
	FOVEA_FUZZ_INPUTS=$(FUZZ_INPUTS) FOVEA_FUZZ_SEED=$(FUZZ_SEED) PROPTEST_CASES=$(FUZZ_INPUTS) \
	    $(CARGO) test --release --locked -p fovea-pictures -p fovea-dataset --lib -- --nocapture decode::storm pillow raw::grade_table raw::text_table raw::layouts

bench: setup
	@FOVEA="$(FOVEA)" scripts/bench.sh

gpu-check:
	@FOVEA="$(FOVEA)" scripts/gpu-check.sh

fresh:
	@scripts/fresh.sh

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets $(FEATURES) -- -D warnings
	@CARGO="$(CARGO)" scripts/deny.sh

clean:
	rm -rf target "$(DEMO)" bench-out gpu-check-out fresh-out
