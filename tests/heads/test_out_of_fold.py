"""What a head predicts for rows that it has not seen: no label of a row has a say in it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from builders import make_dataset
from featurestore.errors import HeadError
from heads import registry
from heads.comparison.out_of_fold import out_of_fold

DATASET = make_dataset(n=300, d=8, n_classes=3)


@pytest.mark.parametrize("fold", range(5))
def test_the_labels_of_a_fold_have_no_say_in_its_predictions(fold: int) -> None:
    """Not in the fit, and not in the choice of C: these rows' labels are drawn anew."""
    inside, y = DATASET.folds(5) == fold, DATASET.y.copy()
    y[inside] = np.random.default_rng(fold).permutation(y[inside])
    assert (y != DATASET.y).any()
    before, after = out_of_fold(DATASET), out_of_fold(replace(DATASET, y=y))
    assert np.array_equal(before[inside], after[inside])
    assert not np.array_equal(before[~inside], after[~inside])


def test_it_predicts_what_scikit_learn_does() -> None:
    """The same folds, the same values of C, each chosen on the other folds."""
    folds = DATASET.folds(5)
    Cs = [point["C"] for point in registry.family("logreg").grid[::2]]
    X, said = StandardScaler().fit_transform(DATASET.X), np.empty_like(DATASET.y)
    for fold in range(5):
        inside = folds == fold
        chosen = GridSearchCV(
            LogisticRegression(max_iter=5000, tol=1e-8),
            {"C": Cs},
            cv=PredefinedSplit(folds[~inside]),
            scoring=lambda head, X, y: float(np.sum(head.predict(X) == y)),  # a row counts as much as another
        )
        said[inside] = chosen.fit(X[~inside], DATASET.y[~inside]).predict(X[inside])
    assert np.mean(out_of_fold(DATASET) == said) > 0.99


def test_groups_are_never_split() -> None:
    """Copies of a row, each with a label of their pair's own: only who has seen one of the two can know it."""
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(150, 300)), 2, axis=0).astype(np.float32)
    y = np.repeat(rng.choice(["a", "b"], 150), 2)
    pairs = np.repeat(np.arange(150), 2).astype(str)
    dataset = replace(DATASET, X=X, y=y, groups=pairs)
    apart = np.mean(out_of_fold(dataset) == y)
    seen = np.mean(out_of_fold(replace(dataset, groups=None)) == y)
    assert apart < 0.6 < seen
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    assert np.mean(cross_val_predict(head, X, y, groups=pairs, cv=GroupKFold(5)) == y) < 0.6


@pytest.mark.parametrize(
    ("dataset", "got"),
    [
        (replace(DATASET, y=np.full(300, "one")), "1 in 5"),
        (replace(DATASET, groups=np.full(300, "one")), "3 in 1"),
    ],
)
def test_what_cannot_be_predicted_says_so(dataset: object, got: str) -> None:
    with pytest.raises(HeadError, match=f"at least two classes, in at least 3 folds. Got: {got}"):
        out_of_fold(dataset)  # type: ignore[arg-type]
