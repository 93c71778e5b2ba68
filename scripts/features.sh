#!/usr/bin/env bash
# The cargo features that this machine can build, as words for cargo's command line.
cd "$(dirname "$0")/.." || exit 1
if scripts/try.sh mpi >/dev/null 2>&1; then echo "--features mpi"; fi
