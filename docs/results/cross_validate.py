"""The digits by repeated five-fold cross-validation: `python docs/results/cross_validate.py [--repeats 2]`.

Every fold trains the full-precision model at the usual number of epochs and at twice that number, the low-bit models on
the labels alone, and those that the recipe 'best' converts from the full-precision model. Accuracies, in
digits/cross-validation.json, are those of the fold kept aside.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import RepeatedStratifiedKFold

import tinybitvit as tb
from tinybitvit.study.results import interval

OUT = Path(__file__).resolve().parent / "digits" / "cross-validation.json"
EPOCHS = 30


def models(seed, X, y):
    """(name, fitted model) of one fold."""
    options = {"random_state": seed, "verbose": 0}
    twin = tb.ViT(bits=32, epochs=EPOCHS, **options).fit(X, y)
    yield "32 bits", twin
    yield "32 bits, twice the epochs", tb.ViT(bits=32, epochs=2 * EPOCHS, **options).fit(X, y)
    for bits in (1.58, 1):
        yield f"{bits} bits, labels", tb.ViT(bits=bits, epochs=EPOCHS, **options).fit(X, y)
        student = tb.ViT(bits=bits, epochs=EPOCHS, recipe="best", distill_from=twin, **options)
        yield f"{bits} bits, block by block", student.fit(X, y)


def main(repeats):
    X, y = load_digits(return_X_y=True)
    folds = RepeatedStratifiedKFold(n_splits=5, n_repeats=repeats, random_state=0)
    scores = {}
    for seed, (train, test) in enumerate(folds.split(X, y)):
        for name, model in models(seed, X[train], y[train]):
            scores.setdefault(name, []).append(float(model.score(X[test], y[test])))
        print(seed + 1, {name: f"{100 * np.mean(s):.2f}" for name, s in scores.items()}, flush=True)
    results = {"command": f"python docs/results/cross_validate.py --repeats {repeats}", "accuracy": scores}
    results["mean"] = {name: interval(s) for name, s in scores.items()}
    for twin in ("32 bits", "32 bits, twice the epochs"):  # paired: the same fold, the same seed
        gaps = {name: interval(np.subtract(scores[twin], s)) for name, s in scores.items() if name != twin}
        results[f"gap to {twin}"] = gaps
    OUT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2)
    main(parser.parse_args().repeats)
