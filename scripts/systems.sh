#!/usr/bin/env bash
# All five systems in small, on drawn data: prepares, trains, evaluates on the test split, and prints one table.
# Presets and code are those of a real run; pictures, epochs and views are smaller, and weights begin at random.
set -euo pipefail
cd "$(dirname "$0")/.."
FOVEA=${FOVEA:-target/release/fovea}
OUT=${SYSTEMS:-systems}

[ -t 1 ] && bold=$'\033[1m' plain=$'\033[0m' || bold='' plain=''
step() { printf '\n%s$ fovea %s%s\n' "$bold" "$*" "$plain"; "$FOVEA" "$@"; }

rm -rf "$OUT"
mkdir -p "$OUT"
step synth "$OUT/lesions/raw" --images 48
step prepare "$OUT/lesions/raw" "$OUT/lesions/data" --size 640 --patch 64
for kind in labels classes boxes; do
    step synth "$OUT/$kind/raw" --kind $kind --images 320 --size 128
    step prepare "$OUT/$kind/raw" "$OUT/$kind/data" --size 128
done

# system SYSTEM KIND PRESET SETTING...: one training, and its scores on the test split as JSON.
system() {
    local name=$1 kind=$2 preset=$3 settings=()
    shift 3
    for setting in "$@"; do settings+=(--set "$setting"); done
    step train --preset "$preset" --data "$OUT/$kind/data" --out "$OUT/$name" --ranks 2 \
        --set train.threads_per_rank=1 --set train.virtual_shards=2 "${settings[@]}"
    "$FOVEA" eval "$OUT/$name" "$OUT/$kind/data" --split test --json >"$OUT/$name.json"
    step tune "$OUT/$name"
    "$FOVEA" eval "$OUT/$name" "$OUT/$kind/data" --split test --json >"$OUT/$name.tuned.json"
}

small=(data.global_size=96 train.images_per_step=16 optimizer.lr=5e-4)
system hybrid lesions demo
system patch_only lesions patch_only train.epochs=12 train.images_per_step=4 optimizer.lr=1e-3 schedule.kind=cosine \
    augment.offset=0 augment.rotation=0
system odir labels odir_resnet18 "${small[@]}" train.epochs=8
system resnet_densenet classes resnet_densenet "${small[@]}" \
    'stages=[{epochs=1, train="head", lr=3e-4}, {epochs=7, lr=3e-4, kind="cosine"}]'
# Without ImageNet weights there is nothing to freeze: all of it trains.
system resnet50_meta boxes resnet50_meta "${small[@]}" 'stages=[{epochs=8, lr=3e-4, kind="cosine"}]'

printf '\nmacro-F1 on the test split\n%-16s %-6s %14s %6s %22s\n' system level 'best constant' ours 'with tuned thresholds'
row() { python3 scripts/systems.py "$OUT/$1.json" "$OUT/$1.tuned.json" "$@"; }
row hybrid patch
row patch_only patch
row odir image
row resnet_densenet image
row resnet50_meta image
