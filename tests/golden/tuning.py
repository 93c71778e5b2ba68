"""Makes tuning.json: temperatures by SciPy and thresholds by scikit-learn, for the tests of run/src/tuning.

    pip install numpy scipy scikit-learn && python tests/golden/tuning.py

Logits are multiples of 1/64, exact in f32. Seeded: the same file every time. Made with SciPy 1.17.1, scikit-learn 1.9.1.
"""

import json
import pathlib

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax
from sklearn.metrics import f1_score, precision_recall_curve


def fitted(nll):
    return float(minimize_scalar(nll, bounds=(0.1, 10.0), method="bounded", options={"xatol": 1e-10}).x)


def any_of(name, rng, rows, classes, scale, prevalence):
    y = rng.random((rows, classes)) < prevalence
    z = np.round(scale * (rng.normal(size=(rows, classes)) + 1.5 * y - 0.75) * 64) / 64
    signed = lambda c: np.where(y[:, c], z[:, c], -z[:, c])
    case = {
        "name": name,
        "kind": "any_of",
        "classes": classes,
        "labels": [int(sum(1 << c for c in range(classes) if row[c])) for row in y],
        "logits": z.reshape(-1).tolist(),
        "temperatures": [fitted(lambda t, s=signed(c): -log_expit(s / t).sum()) for c in range(classes)],
        "nll_before": float(np.mean([-log_expit(signed(c)).mean() for c in range(classes)])),
        "best_f1": [],
        "grid_f1": [],
        "precision_at_sensitivity": [],
    }
    for c in range(classes):
        p = expit(z[:, c].astype(np.float32))
        precision, recall, thresholds = precision_recall_curve(y[:, c], p, drop_intermediate=False)
        case["best_f1"].append(max(float(f1_score(y[:, c], p >= t)) for t in thresholds))
        grid = [np.float32(k * 0.05) for k in range(1, 20)]
        case["grid_f1"].append(max(float(f1_score(y[:, c], p >= t, zero_division=0)) for t in grid))
        enough = np.flatnonzero(recall[:-1] >= 0.9)
        case["precision_at_sensitivity"].append(float(precision[enough[-1]]))
    return case


def one_of(name, rng, rows, classes, scale):
    y = rng.integers(classes, size=rows)
    z = np.round(scale * (rng.normal(size=(rows, classes)) + 1.5 * np.eye(classes)[y]) * 64) / 64
    nll = lambda t: -log_softmax(z / t, axis=1)[np.arange(rows), y].mean()
    return {
        "name": name,
        "kind": "one_of",
        "classes": classes,
        "labels": y.tolist(),
        "logits": z.reshape(-1).tolist(),
        "temperatures": [fitted(nll)],
        "nll_before": float(nll(1.0)),
        "best_f1": [],
        "grid_f1": [],
        "precision_at_sensitivity": [],
    }


rng = np.random.default_rng(13)
cases = [
    any_of("overconfident", rng, 60, 4, 3.0, [0.1, 0.3, 0.5, 0.8]),
    any_of("underconfident", rng, 50, 2, 0.5, [0.4, 0.2]),
    any_of("rare", rng, 120, 1, 1.0, [0.04]),
    one_of("softmax, overconfident", rng, 60, 5, 4.0),
    one_of("softmax of two", rng, 40, 2, 0.5),
]
path = pathlib.Path(__file__).with_name("tuning.json")
path.write_text(json.dumps(cases, separators=(",", ":")) + "\n")
print(path, path.stat().st_size, "bytes", [case["temperatures"] for case in cases])
