#!/usr/bin/env bash
# Measures Fovea against PyTorch on this machine. PyTorch goes into .venv-bench (some 3 GB, once).
set -euo pipefail
cd "$(dirname "$0")/.."
FOVEA=${FOVEA:-target/release/fovea}
OUT=${OUT:-bench-out}
VENV=.venv-bench

if [ ! -e $VENV/.complete ]; then
    echo "bench: fetching PyTorch 2.11.0 into $VENV"
    rm -rf $VENV
    python3 -m venv $VENV
    $VENV/bin/pip install -q torch==2.11.0 torchvision==0.26.0 numpy safetensors
    touch $VENV/.complete
fi
mkdir -p "$OUT"
if [ ! -e "$OUT/raw/.complete" ]; then
    rm -rf "$OUT/raw"
    "$FOVEA" synth "$OUT/raw" --images "${PREPARE_IMAGES:-200}"
    touch "$OUT/raw/.complete"
fi

echo "== prepare: ${PREPARE_IMAGES:-200} images of 1280 x 1280"
rm -rf "$OUT/data"
$VENV/bin/python bench/prepare.py "$OUT/raw" "$OUT/data" --fovea "$FOVEA"
echo "== kernels"
cargo run --release --locked -q -p fovea-kernels --example bench
echo "== all-reduce"
"$FOVEA" bench allreduce --ranks 2
echo "== training step"
$VENV/bin/python bench/step.py "$OUT/data" --fovea "$FOVEA" --out "$OUT"
