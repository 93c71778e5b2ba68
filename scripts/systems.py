#!/usr/bin/env python3
"""One row of the table of `make systems`: FILE TUNED SYSTEM LEVEL, the files being what `fovea eval --json` printed."""

import json
import sys

file, tuned, system, level = sys.argv[1:]


def macro_f1(path):
    with open(path) as text:
        scores = json.load(text)
    return scores[level]["f1_macro"], scores["best_constant"][level]["f1_macro"]


ours, constant = macro_f1(file)
print(f"{system:<16} {level:<6} {constant:>14.3f} {ours:>6.3f} {macro_f1(tuned)[0]:>22.3f}")
