#!/usr/bin/env bash
# Says how long `make run` will take on this machine, before it begins: from what is still to be done, the processors, their
# instructions, how fast one of them is now, and what else runs. The figures are those of the reference machine (2 idle
# cores of an AMD EPYC, Zen 4); docs/performance.md has them too.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

BUILD_S=440      # processor seconds of a build from nothing
BUILD_SERIAL_S=75 # of it, what one core does while others have nothing to do
FETCH_S=60       # packages and libtorch, by a fast connection
TRAIN_BF16_S=140 # processor seconds of the demo, by the instructions there are
TRAIN_AVX512_S=220
TRAIN_AVX2_S=270
LOOP_MS=75       # the loop below

cores=$(nproc)
has() { grep -qw "$1" /proc/cpuinfo; }
if has avx512_bf16; then train=$TRAIN_BF16_S how="bf16"
elif has avx512f; then train=$TRAIN_AVX512_S how="AVX-512, no bf16"
elif has avx2; then train=$TRAIN_AVX2_S how="AVX2, no bf16"
else train=$((TRAIN_AVX2_S * 3)) how="no AVX2"; fi

# The best of three: how fast a core is, not how busy. In the time that the process had, not that of the clock.
best=
for _ in 1 2 3; do
    ms=$({ TIMEFORMAT=%U; time for ((i = 0; i < 60000; i++)); do :; done; } 2>&1 | awk '{ print int($1 * 1000) }')
    if [ -z "$best" ] || [ "$ms" -lt "$best" ]; then best=$ms; fi
done
# Other work takes its share of the cores.
busy=$(awk '{ print $1 }' /proc/loadavg)

target=${CARGO_TARGET_DIR:-target}
[ -e "${LIBTORCH:-.libtorch/torch}/lib/libtorch_cpu.so" ] && fetch=0 || fetch=$FETCH_S
[ -e "$target/release/fovea" ] && build=0 || build=$BUILD_S
# Two ranks of one thread train.
awk -v cores="$cores" -v busy="$busy" -v ms="${best:-$LOOP_MS}" -v loop="$LOOP_MS" -v fetch="$fetch" -v build="$build" \
    -v serial="$BUILD_SERIAL_S" -v train="$train" -v how="$how" 'BEGIN {
    slow = ms / loop; if (slow < 0.5) slow = 0.5
    share = cores / (cores + busy); if (busy < 0.7) share = 1
    builders = cores > 8 ? 8 : cores; trainers = cores > 2 ? 2 : cores
    if (build) build = (serial + (build - serial) / builders) * slow / share
    # With cores to spare, other work does not take from the ranks.
    if (cores >= busy + trainers) share = 1
    train = train / trainers * slow / share + 15
    total = fetch + build + train
    printf "make run: about %s on this machine (%d core%s, %s%s)", span(total), cores, cores == 1 ? "" : "s", how, busy < 0.7 ? "" : sprintf(", other work: load %s", busy)
    printf ": %s%straining %s\n", fetch ? "fetching " span(fetch) " or by your connection, " : "", build ? "building " span(build) ", " : "", span(train)
}
function span(s) { return s < 90 ? sprintf("%d s", int(s / 10 + 0.5) * 10) : sprintf("%d min", int(s / 60 + 0.5)) }'
