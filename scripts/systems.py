#!/usr/bin/env python3
"""One row of the table of `make systems`: FILE SYSTEM LEVEL METRIC, FILE being what `fovea eval --json` printed."""

import json
import sys

file, system, level, metric = sys.argv[1:]
with open(file) as text:
    scores = json.load(text)
best, ours = scores["best_constant"][level][metric], scores[level][metric]
print(f"{system:<16} {level:<8} {metric:<24} {best:>14.3f} {ours:>8.3f}")
