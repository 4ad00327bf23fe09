"""The table of head families, and ``fit``, the one way to fit any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from featurestore.errors import HeadError, UsageError
from featurestore.limits import check_seed
from heads.base import Head, Problem, coded, fit_temperature, standardisation, standardise
from heads.families.base import Family
from heads.families.dense import DENSE
from heads.families.kernel import KERNEL_LOGREG, KERNEL_SVM
from heads.families.linear import LOGREG, RIDGE, SVM
from heads.families.neighbors import KNN, NCM
from heads.families.svm import RBF_SVM
from heads.spec import HeadSpec

# From simple to complex: of families that tie, compare prefers the earlier one.
FAMILIES: dict[str, Family] = {
    "ncm": NCM,
    "logreg": LOGREG,
    "svm": SVM,
    "ridge": RIDGE,
    "knn": KNN,
    "kernel-logreg": KERNEL_LOGREG,
    "kernel-svm": KERNEL_SVM,
    "rbf-svm": RBF_SVM,
    "dense": DENSE,
}


def register(name: str, row: Family) -> None:
    """Add a family to the end of the table under a name.

    Example:
        >>> register("ridge-10", replace(family("ridge"), about="ridge, alpha 10", defaults={"alpha": 10.0}))
        >>> fit(HeadSpec("ridge-10"), np.eye(4), np.array(["a", "b", "a", "b"])).params
        {'alpha': 10.0}
        >>> del FAMILIES["ridge-10"]
    """
    FAMILIES[name] = row


def family(name: str) -> Family:
    """Return the family of a name.

    Raises:
        UsageError: there is no such family.
    """
    if name not in FAMILIES:
        raise UsageError(f"There is no head {name!r}: choose one of {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def complete(name: str, params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return all parameters of a family: those given, and the defaults of the others.

    Raises:
        UsageError: there is no such family or parameter, or a value is invalid.
    """
    row = family(name)
    defaults = row.defaults
    for key in params or {}:
        if key not in defaults:
            known = f"choose from {', '.join(defaults)}" if defaults else "it has none"
            raise UsageError(f"Head {name!r} has no parameter {key!r}: {known}.")
    given = {**defaults, **(params or {})}
    row.check(**given)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}


def check_weight(name: str, class_weight: str | None) -> None:
    """Raise UsageError for a class weight that a family cannot be fitted with.

    Raises:
        UsageError: the class weight is unknown, or the family cannot weight classes.
    """
    if class_weight not in (None, "balanced"):
        raise UsageError(f'Class weight: Expected: "balanced" or none. Got: {class_weight!r}.')
    if class_weight and not family(name).weighted:
        raise UsageError(f"Head {name!r} cannot weight classes: leave --class-weight out.")


def weight_of_loss(name: str, params: Mapping[str, Any]) -> float | None:
    """Return the C that a head's parameters stand for (smaller is more regular); None if the family has no penalty."""
    C = family(name).C
    return None if C is None else C(**params)


def describe(name: str, params: Mapping[str, Any]) -> str:
    """Describe, in words, the parameters that the family's grid varies and those that differ from their defaults."""
    known = family(name)
    varied = {key for point in known.grid for key in point}
    shown = {key: value for key, value in params.items() if key in varied or value != known.defaults.get(key)}
    return ", ".join(
        f"{key} {'→'.join(map(str, value)) if isinstance(value, list) else value}" for key, value in shown.items()
    )


def fit(
    spec: HeadSpec,
    X: np.ndarray,
    y: np.ndarray,
    seed: int = 0,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
) -> Head:
    """Fit a head.

    Features are standardised with the mean and scale of X. Validation rows set the temperature of heads whose scores
    are logits and stop dense nets early. Validation rows of classes that y lacks are left out. Without validation rows
    the temperature is 1 and a dense net runs all its epochs.

    Args:
        spec: what to fit; parameters that it does not give have their defaults.
        X: float (n, d), finite.
        y: str (n,), at least two classes.
        seed: of everything random.
        validation: more rows, float (m, d), and their labels, str (m,).

    Raises:
        UsageError: an unknown family, parameter or value, or a family that cannot weight classes.
        HeadError: shapes that do not match, features that are not finite, or labels of fewer than two classes.
    """
    row = family(spec.head)
    params = complete(spec.head, spec.params)
    check_weight(spec.head, spec.class_weight)
    check_seed("--seed", seed)
    X, y = _checked(X, y, "training")
    classes, codes = coded(y)
    X_val, y_val = (X[:0], y[:0]) if validation is None else _of_classes(classes, X.shape[1], *validation)

    mean, scale = standardisation(X)
    history: list[dict[str, float]] = []
    problem = Problem(
        X=standardise(X, mean, scale),
        y=codes,
        n_classes=len(classes),
        class_weight=spec.class_weight,
        seed=seed,
        X_val=standardise(X_val, mean, scale),
        y_val=np.searchsorted(classes, y_val),
        on_epoch=history.append,
    )
    arrays = {"mean": mean, "scale": scale, "temperature": np.float64(1), **row.fit(problem, **params)}
    head = row.head(spec.head, params, classes, {k: np.asarray(v) for k, v in arrays.items()}, tuple(history))
    return calibrated(head, X_val, y_val)


def calibrated(head: Head, X_val: np.ndarray, y_val: np.ndarray) -> Head:
    """Return the head with the temperature that fits validation rows X_val (m, d) best; y_val is str (m,)."""
    if family(head.family).votes:
        return head
    known = np.isin(y_val, head.classes)
    codes = np.searchsorted(head.classes, y_val[known])
    temperature = np.asarray(fit_temperature(head.scores(X_val[known]), codes))
    return replace(head, arrays={**head.arrays, "temperature": temperature})


def _of_classes(classes: np.ndarray, width: int, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the validation rows X (m, width) and labels y (m,) whose class is one of ``classes``."""
    X, y = _checked(X, y, "validation")
    if X.shape[1] != width:
        raise HeadError(f"Expected: validation features of width {width}. Got: {X.shape[1]}.")
    known = np.isin(y, classes)
    return X[known], y[known]


def _checked(X: np.ndarray, y: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Return X as an array and y as strings; raise HeadError if shapes do not match or X is not finite."""
    X, y = np.asarray(X), np.asarray(y)
    if X.ndim != 2 or y.shape != X.shape[:1]:
        raise HeadError(f"Expected: {what} features (n, d) and n labels. Got: shapes {X.shape} and {y.shape}.")
    bad = len(X) - int(np.isfinite(X).all(axis=1).sum())
    if bad:
        raise HeadError(
            f"{bad} of the {len(X)} {what} rows have features that are not finite: run penult verify, then embed again."
        )
    return X, y.astype(str)
