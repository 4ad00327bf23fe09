"""The table of head families, and ``fit``, the one way to fit any of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featurestore.errors import HeadError, UsageError
from featurestore.limits import check_seed
from heads.base import Head, Problem, fit_temperature, standardisation, standardise
from heads.families.dense import DenseHead, check_dense, fit_dense
from heads.families.linear import C_of_alpha, LinearHead, checked_C, fit_logreg, fit_ridge, fit_svm
from heads.families.neighbors import NeighborsHead, check_knn, fit_knn, fit_ncm
from heads.families.svm import RBFHead, check_rbf_svm, fit_rbf_svm
from heads.solvers.sweep import CROSS_ENTROPY, SQUARED, SQUARED_HINGE, Loss

HALF_DECADES = tuple(float(f"{digit}e{power}") for power in range(-6, 2) for digit in (1, 3))


@dataclass(frozen=True)
class Sweep:
    """How a linear family is fitted many at once: its loss, and the C that its parameters, as keywords, stand for."""

    loss: Loss
    C: Callable[..., float]


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        about: one line for people.
        fit: fits a ``Problem`` with the parameters as keywords and returns the head's arrays.
        head: the class that predicts from those arrays.
        defaults: every parameter with its default.
        grid: what ``compare`` tries, each over the defaults, the most regular first.
        check: raises UsageError for parameters, as keywords, that no fit could have.
        votes: scores are shares of votes, probabilities as they are; those of others are logits with a temperature.
        weighted: takes ``class_weight="balanced"``.
        random: the fit depends on its seed beyond the solver's tolerance.
        sweep: of linear families, whose fits share their passes over the features.
    """

    about: str
    fit: Callable[..., dict[str, np.ndarray]]
    head: type[Head]
    defaults: Mapping[str, Any]
    grid: tuple[Mapping[str, Any], ...]
    check: Callable[..., object] = dict  # which takes anything
    votes: bool = False
    weighted: bool = True
    random: bool = False
    sweep: Sweep | None = None


# From simple to elaborate: compare gives a tie to the earlier one.
FAMILIES: dict[str, Family] = {
    "ncm": Family(
        "nearest class mean: no parameter, a sane lower bound",
        fit_ncm,
        LinearHead,
        defaults={},
        grid=({},),
        weighted=False,
    ),
    "logreg": Family(
        "multinomial logistic regression: calibrated, hard to beat",
        fit_logreg,
        LinearHead,
        defaults={"C": 0.01},
        grid=tuple({"C": C} for C in HALF_DECADES[4:15]),
        check=checked_C,
        sweep=Sweep(CROSS_ENTROPY, checked_C),
    ),
    "svm": Family(
        "linear support vector machine, one against the rest",
        fit_svm,
        LinearHead,
        defaults={"C": 0.001},
        grid=tuple({"C": C} for C in HALF_DECADES[:11]),
        check=checked_C,
        sweep=Sweep(SQUARED_HINGE, checked_C),
    ),
    "ridge": Family(
        "ridge regression on the classes: solved in one step",
        fit_ridge,
        LinearHead,
        defaults={"alpha": 1000.0},
        grid=tuple({"alpha": alpha} for alpha in (100000.0, 30000.0, 10000.0, 3000.0, 1000.0, 300.0, 100.0)),
        check=C_of_alpha,
        sweep=Sweep(SQUARED, C_of_alpha),
    ),
    "knn": Family(
        "k nearest neighbours: keeps every training row",
        fit_knn,
        NeighborsHead,
        defaults={"k": 5, "metric": "cosine"},
        grid=({"k": 10}, {"k": 3}),
        check=check_knn,
        votes=True,
        weighted=False,
    ),
    "rbf-svm": Family(
        "support vector machine with a Gaussian kernel: for up to some thousand rows",
        fit_rbf_svm,
        RBFHead,
        defaults={"C": 10.0, "gamma": "scale"},
        grid=({"C": 1.0}, {"C": 10.0}),
        check=check_rbf_svm,
    ),
    "dense": Family(
        "dense net: hidden ReLU layers with dropout, early stopping on validation",
        fit_dense,
        DenseHead,
        defaults={
            "hidden": [256],
            "dropout": 0.3,
            "optimizer": "adam",
            "learning_rate": 0.001,
            "epochs": 60,
            "batch_size": 64,
            "patience": 6,
        },
        grid=({"hidden": [256]}, {"hidden": [512, 256], "dropout": 0.5}),
        check=check_dense,
        random=True,
    ),
}


def family(name: str) -> Family:
    """Look a family up.

    Raises:
        UsageError: there is no such family.
    """
    if name not in FAMILIES:
        raise UsageError(f"There is no head {name!r}: choose one of {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def complete(name: str, params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return all parameters of a family, those not given at their defaults.

    Raises:
        UsageError: there is no such family or parameter, or a value that no fit could have.
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
    """Refuse a class weight that a family cannot be fitted with.

    Raises:
        UsageError: an unknown one, or a family that cannot weight classes.
    """
    if class_weight not in (None, "balanced"):
        raise UsageError(f'Class weight: Expected: "balanced" or none. Got: {class_weight!r}.')
    if class_weight and not family(name).weighted:
        raise UsageError(f"Head {name!r} cannot weight classes: leave --class-weight out.")


def describe(name: str, params: Mapping[str, Any]) -> str:
    """In words, the parameters that the grid varies and those that are not at their defaults."""
    known = family(name)
    varied = {key for point in known.grid for key in point}
    shown = {key: value for key, value in params.items() if key in varied or value != known.defaults.get(key)}
    return ", ".join(
        f"{key} {'→'.join(map(str, value)) if isinstance(value, list) else value}" for key, value in shown.items()
    )


def fit(
    name: str,
    X: np.ndarray,
    y: np.ndarray,
    *,
    params: Mapping[str, Any] | None = None,
    class_weight: str | None = None,
    seed: int = 0,
    X_val: np.ndarray | None = None,
    y_val: np.ndarray | None = None,
) -> Head:
    """Fit a head.

    Features are standardised with the mean and scale of X. Validation rows set the temperature of heads
    whose scores are logits and stop dense nets early; those of classes that y lacks are left out, and
    without any the temperature is 1 and a dense net runs all its epochs.

    Args:
        name: a family of ``FAMILIES``.
        X: float (n, d), finite.
        y: str (n,), at least two classes.
        params: those that differ from the family's defaults.
        class_weight: None, or "balanced" for rows weighted by ``n / (c * count of the class)``.
        seed: of everything random.
        X_val: float (m, d), or None.
        y_val: str (m,), or None.

    Raises:
        UsageError: an unknown family, parameter or value, or a family that cannot weight classes.
        HeadError: features and labels that no head can be fitted to.
    """
    row = family(name)
    params = complete(name, params)
    check_weight(name, class_weight)
    check_seed("--seed", seed)
    X, y = _checked(X, y, "training")
    classes, codes = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise HeadError(f"Expected: training labels of at least two classes. Got: {', '.join(classes)!r}.")
    X_val, y_val = _checked(
        np.empty((0, X.shape[1]), np.float32) if X_val is None else X_val,
        np.empty(0, classes.dtype) if y_val is None else y_val,
        "validation",
    )
    if X_val.shape[1] != X.shape[1]:
        raise HeadError(f"Expected: validation features of width {X.shape[1]}. Got: {X_val.shape[1]}.")
    known = np.isin(y_val, classes)
    X_val, y_val = X_val[known], y_val[known]

    mean, scale = standardisation(X)
    history: list[dict[str, float]] = []
    problem = Problem(
        X=standardise(X, mean, scale),
        y=codes,
        n_classes=len(classes),
        class_weight=class_weight,
        seed=seed,
        X_val=standardise(X_val, mean, scale),
        y_val=np.searchsorted(classes, y_val),
        on_epoch=history.append,
    )
    arrays = {"mean": mean, "scale": scale, "temperature": np.float64(1), **row.fit(problem, **params)}
    head = row.head(name, params, classes, {k: np.asarray(v) for k, v in arrays.items()}, tuple(history))
    return calibrated(head, X_val, y_val)


def calibrated(head: Head, X_val: np.ndarray, y_val: np.ndarray) -> Head:
    """The head with the temperature that fits validation rows X_val (m, d) best; y_val is str (m,)."""
    if family(head.family).votes:
        return head
    known = np.isin(y_val, head.classes)
    codes = np.searchsorted(head.classes, y_val[known])
    temperature = np.asarray(fit_temperature(head.scores(X_val[known]), codes))
    return replace(head, arrays={**head.arrays, "temperature": temperature})


def _checked(X: np.ndarray, y: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Return X as an array and y as strings, or say what is wrong with them."""
    X, y = np.asarray(X), np.asarray(y)
    if X.ndim != 2 or y.shape != X.shape[:1]:
        raise HeadError(f"Expected: {what} features (n, d) and n labels. Got: shapes {X.shape} and {y.shape}.")
    bad = len(X) - int(np.isfinite(X).all(axis=1).sum())
    if bad:
        raise HeadError(
            f"{bad} of the {len(X)} {what} rows have features that are not finite: run penult verify, then embed again."
        )
    return X, y.astype(str)
