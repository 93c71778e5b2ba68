#!/usr/bin/env bash
# The main job in small: a synthetic fundus dataset, prepared, trained by two ranks, reported on.
set -euo pipefail
cd "$(dirname "$0")/.."
FOVEA=${FOVEA:-target/release/fovea}
DEMO=${DEMO:-demo}

[ -t 1 ] && bold=$'\033[1m' plain=$'\033[0m' || bold='' plain=''
step() { printf '\n%s$ fovea %s%s\n' "$bold" "$*" "$plain"; "$FOVEA" "$@"; }

rm -rf "$DEMO"
mkdir -p "$DEMO"
step synth "$DEMO/raw" --images 48
# Half the size of a real run, so that training takes two minutes on processors without bf16 as well.
step prepare "$DEMO/raw" "$DEMO/data" --size 640 --patch 64
step data "$DEMO/data" --mosaic "$DEMO/mosaic.png"
step train --preset demo --data "$DEMO/data" --out "$DEMO/run"
step report "$DEMO/run"
if [ -n "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ] && command -v xdg-open >/dev/null; then
    xdg-open "$DEMO/run/report.html" >/dev/null 2>&1 || true
fi
