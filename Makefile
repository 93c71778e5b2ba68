# Fovea: `make run` shows the whole system in small on this machine; `make test` proves it.
CARGO ?= cargo
# Backend mpi where this machine has MPI.
FEATURES := $(shell command -v mpicc >/dev/null 2>&1 && echo --features mpi)
FOVEA := target/release/fovea
DEMO := demo

.PHONY: help setup build run test chaos bench gpu-check lint clean

help:
	@echo "make run    set up, build, then train the hybrid model on a synthetic dataset (CPU, minutes)"
	@echo "make test   set up, then all tests"
	@echo "make chaos  200 faults in real runs: what each cost, and that none changed the result"
	@echo "make bench  training step against PyTorch DDP, prepare, kernels (fetches PyTorch into .venv-bench)"
	@echo "make gpu-check  all checks and measurements that need a GPU; builds and fetches nothing"
	@echo "make setup  system packages (as root), libtorch, release build"
	@echo "make lint   rustfmt and clippy"

setup:
	@scripts/setup.sh
	@$(MAKE) --no-print-directory build

# A second make, so that FEATURES sees an MPI that set-up has just installed.
build:
	$(CARGO) build --release --locked $(FEATURES)

run: setup
	@DEMO=$(DEMO) FOVEA=$(FOVEA) scripts/demo.sh

test: setup
	@$(MAKE) --no-print-directory test-all

# Tests of jobs on Slurm need its packages, those of its nodes as machines of their own need root as well. Here
# they are left out where that is missing; `cargo test` by itself has them fail.
SLURM := $(shell PATH="$$PATH:/usr/sbin:/sbin"; for program in slurmctld slurmd sbatch srun munged; do \
    command -v $$program >/dev/null || { echo off; break; }; done)
NAMESPACES := $(shell unshare --net --uts --mount --ipc --pid --fork --mount-proc \
    ip link add probe type bridge >/dev/null 2>&1 || echo off)

.PHONY: test-all
test-all:
	@test -z "$(SLURM)" || echo "make: without the tests of jobs: no Slurm packages here (scripts/setup.sh names them)"
	@test -n "$(SLURM)$(if $(NAMESPACES),,on)" || echo "make: without the tests of cut links and dead machines: they need root"
	$(if $(SLURM),FOVEA_TEST_SLURM=off )$(if $(NAMESPACES),FOVEA_TEST_NAMESPACES=off )$(CARGO) test --release \
	    --locked --workspace $(FEATURES)

# A storm of faults over real runs; CHAOS_FAULTS and CHAOS_SEED choose another one.
CHAOS_FAULTS ?= 200
CHAOS_SEED ?= 1

chaos: setup
	FOVEA_CHAOS_FAULTS=$(CHAOS_FAULTS) FOVEA_CHAOS_SEED=$(CHAOS_SEED) \
	    $(CARGO) test --release --locked $(FEATURES) --test chaos -- --ignored --nocapture

bench: setup
	@FOVEA=$(FOVEA) scripts/bench.sh

gpu-check:
	@FOVEA=$(FOVEA) scripts/gpu-check.sh

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets $(FEATURES) -- -D warnings

clean:
	rm -rf target $(DEMO) bench-out gpu-check-out
