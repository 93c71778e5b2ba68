"""Makes metrics.json and metrics_one_of.json: inputs and scikit-learn's scores of them, for the tests of run/src/metrics.

    pip install scikit-learn && python tests/golden/metrics.py

Probabilities are multiples of 2^-k, exact in f32 and in decimal. Seeded: the same file every time.
Made with scikit-learn 1.9.1.
"""

import itertools
import json
import pathlib
import warnings

import numpy as np
from sklearn import metrics as sk

CLASSES = 4


def bits(labels):
    return (np.asarray(labels)[:, None] >> np.arange(CLASSES)) & 1


def optional(defined, value):
    return float(value()) if defined else None


def per_column(y, guess):
    """Scores of each class against the rest: its column of zeros and ones."""
    columns = [(y[:, c], guess[:, c]) for c in range(y.shape[1])]
    kappas = [float(sk.cohen_kappa_score(t, g, labels=[0, 1])) for t, g in columns]
    return {
        "kappa_per_class": [k if np.isfinite(k) else None for k in kappas],
        "specificity": [float(sk.recall_score(t, g, pos_label=0, zero_division=0)) for t, g in columns],
        "f1_absent_and_present": [float(sk.f1_score(t, g, average="macro", zero_division=0)) for t, g in columns],
    }


def averages(y, guess, **options):
    return {
        f"{how}_average": [float(v) for v in sk.precision_recall_fscore_support(y, guess, average=how, zero_division=0, **options)[:3]]
        for how in ("micro", "macro", "weighted")
    }


def areas(y, p):
    """Over the classes that have both kinds of labels."""
    both = [c for c in range(y.shape[1]) if 0 < y[:, c].sum() < len(y)]
    mean = lambda how: optional(both, lambda: sk.roc_auc_score(y[:, both], p[:, both], average=how))
    micro = optional(0 < y.sum() < y.size, lambda: sk.roc_auc_score(y.ravel(), p.ravel()))
    return {"auroc_averages": [micro, mean("macro"), mean("weighted")]}


def report(y, guess, names, **options):
    text = sk.classification_report(y, guess, target_names=names, digits=4, zero_division=0, **options)
    return "".join(line for line in text.splitlines(keepends=True) if "samples avg" not in line)


def expected(labels, probs, thresholds):
    y = bits(labels)
    p = np.asarray(probs, dtype=np.float64)
    guess = (p >= np.asarray(thresholds, dtype=np.float64)).astype(int)
    per_class = {
        name: [float(v) for v in score(y, guess, average=None, zero_division=0)]
        for name, score in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score))
    }
    varies = p.std() > 0 and y.std() > 0
    confusion = [[int(m[1, 1]), int(m[0, 1]), int(m[1, 0]), int(m[0, 0])] for m in sk.multilabel_confusion_matrix(y, guess)]
    constants = (np.tile(c, (len(y), 1)) for c in itertools.product((0, 1), repeat=CLASSES))
    return {
        "f1_micro": float(sk.f1_score(y, guess, average="micro", zero_division=0)),
        "f1_macro": float(sk.f1_score(y, guess, average="macro", zero_division=0)),
        "hamming": float(sk.hamming_loss(y, guess)),
        "subset_acc": float(sk.accuracy_score(y, guess)),
        "iou": float(sk.jaccard_score(y, guess, average="samples", zero_division=1)),
        "dice": float(sk.f1_score(y, guess, average="samples", zero_division=1)),
        "pearson_r": optional(varies, lambda: np.corrcoef(p.ravel(), y.ravel())[0, 1]),
        **per_class,
        "auroc": [optional(0 < y[:, c].sum() < len(y), lambda: sk.roc_auc_score(y[:, c], p[:, c])) for c in range(CLASSES)],
        "ap": [optional(y[:, c].any(), lambda: sk.average_precision_score(y[:, c], p[:, c])) for c in range(CLASSES)],
        "confusion": confusion,
        **per_column(y, guess),
        **averages(y, guess),
        **areas(y, p),
        "report": report(y, guess, ["MA", "HE", "EX", "SE"]),
        "constant_f1_micro": max(float(sk.f1_score(y, c, average="micro", zero_division=0)) for c in constants),
    }


def expected_one_of(labels, probs):
    y = np.asarray(labels)
    p = np.asarray(probs, dtype=np.float64)
    classes = list(range(p.shape[1]))
    guess = p.argmax(axis=1)
    hot = np.eye(len(classes), dtype=int)[y]
    per_class = {
        name: [float(v) for v in score(y, guess, labels=classes, average=None, zero_division=0)]
        for name, score in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score))
    }
    kappa = float(sk.cohen_kappa_score(y, guess, labels=classes))
    return {
        "accuracy": float(sk.accuracy_score(y, guess)),
        "kappa": kappa if np.isfinite(kappa) else None,
        "confusion": sk.confusion_matrix(y, guess, labels=classes).tolist(),
        "f1_micro": float(sk.f1_score(y, guess, average="micro", zero_division=0)),
        "f1_macro": float(sk.f1_score(y, guess, labels=classes, average="macro", zero_division=0)),
        "hamming": float(sk.hamming_loss(y, guess)),
        "pearson_r": optional(p.std() > 0 and hot.std() > 0, lambda: np.corrcoef(p.ravel(), hot.ravel())[0, 1]),
        **per_class,
        "auroc": [optional(0 < hot[:, c].sum() < len(y), lambda: sk.roc_auc_score(hot[:, c], p[:, c])) for c in classes],
        "ap": [optional(hot[:, c].any(), lambda: sk.average_precision_score(hot[:, c], p[:, c])) for c in classes],
        **per_column(hot, np.eye(len(classes), dtype=int)[guess]),
        **averages(y, guess, labels=classes),
        **areas(hot, p),
        "report": report(y, guess, [f"g{c}" for c in classes], labels=classes),
        "constant_f1_micro": max(float(sk.f1_score(y, np.full(len(y), c), average="micro", zero_division=0)) for c in classes),
    }


def draw(rng, count, rates, skill, steps):
    y = (rng.random((count, CLASSES)) < rates).astype(int)
    z = rng.normal(size=(count, CLASSES)) + skill * (2 * y - 1) - 0.5
    p = np.round(steps / (1 + np.exp(-z))) / steps
    return (y << np.arange(CLASSES)).sum(axis=1), p


def draw_one_of(rng, count, rates, skill, steps):
    y = rng.choice(len(rates), size=count, p=rates)
    z = rng.normal(size=(count, len(rates)))
    z[np.arange(count), y] += skill
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    return y, np.round(steps * p) / steps


def one_of():
    rng = np.random.default_rng(20240608)
    cases = []

    def add(name, labels, probs):
        labels = [int(v) for v in labels]
        probs = [[float(v) for v in row] for row in probs]
        cases.append({"name": name, "labels": labels, "probs": probs, "expected": expected_one_of(labels, probs)})

    add("five grades, few ties", *draw_one_of(rng, 120, (0.49, 0.1, 0.27, 0.06, 0.08), 1.0, 2**16))
    add("many ties", *draw_one_of(rng, 150, (0.4, 0.3, 0.2, 0.1), 0.8, 4))
    add("a class that never occurs", *draw_one_of(rng, 60, (0.5, 0.0, 0.5), 0.7, 32))
    add("worse than chance", *draw_one_of(rng, 60, (0.5, 0.25, 0.25), -1.5, 2**16))
    add("two classes", *draw_one_of(rng, 40, (0.7, 0.3), 1.0, 64))
    add("constant scores", [0, 1, 2, 1], [[0.25] * 3] * 4)
    add("one class only, and right", [1, 1], [[0.25, 0.75], [0, 1]])
    return cases


def write(name, cases):
    path = pathlib.Path(__file__).with_name(name)
    path.write_text("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")


def main():
    rng = np.random.default_rng(20240607)
    half = [0.5] * CLASSES
    cases = []

    def add(name, labels, probs, thresholds=half):
        labels = [int(v) for v in labels]
        probs = [[float(v) for v in row] for row in probs]
        cases.append({"name": name, "thresholds": thresholds, "labels": labels, "probs": probs,
                      "expected": expected(labels, probs, thresholds)})

    add("balanced, few ties", *draw(rng, 120, (0.8, 0.84, 0.7, 0.36), 0.8, 2**16))
    add("many ties", *draw(rng, 150, (0.5, 0.4, 0.3, 0.2), 0.6, 8))
    add("rare positives, own thresholds", *draw(rng, 250, (0.07, 0.16, 0.1, 0.02), 1.2, 64), [0.25, 0.5, 0.375, 0.75])
    labels, probs = draw(rng, 40, (0.5, 0.5, 0.0, 1.0), 1.0, 32)
    add("no positives of EX, only positives of SE", labels, probs)
    add("constant scores", [0, 1, 3, 2, 8], [[0.5] * CLASSES] * 5)
    add("one healthy sample", [0], [[0.125, 0.25, 0.5, 0.75]])
    add("scores of 0 and 1", [1, 2, 4, 8, 0, 15], [[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0]])
    write("metrics.json", cases)
    write("metrics_one_of.json", one_of())


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
