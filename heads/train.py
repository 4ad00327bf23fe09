"""Training of one head: fit it on the train split, score it on validation and, once, on test."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featurestore.dataset import Dataset
from featurestore.errors import HeadError
from featurestore.splits import SPLITS
from heads import registry
from heads.base import Head, softmax
from heads.evaluation import calibration
from heads.evaluation import metrics as evaluate
from heads.spec import HeadSpec


@dataclass(frozen=True)
class TrainResult:
    """A fitted head and its scores: shares of right predictions, with 95 % Wilson intervals.

    ``metrics`` are more scores of the test split. ``baseline`` is the test score of always predicting the most
    frequent class of train. ``n`` has the numbers of rows per split and of classes. ``history`` is the head's (see
    ``Head``). ``calibration`` is the effect of the temperature on test: "temperature", the expected calibration errors
    "ece_before" (at temperature 1) and "ece_after" (at the head's), and the bins "before" and "after" (see
    ``calibration.reliability``); None for a head that votes. ``abstain`` is the result of ``calibration.abstain``.
    """

    feature_set: str
    fingerprint: str
    head: Head
    val: float
    val_ci: tuple[float, float]
    test: float
    test_ci: tuple[float, float]
    metrics: dict[str, float]
    baseline: float
    fit_seconds: float
    n: dict[str, int]
    notes: tuple[str, ...]
    history: tuple[dict[str, float], ...] = ()
    calibration: dict[str, Any] | None = None
    abstain: tuple[dict[str, Any], ...] = ()
    views: int = 0  # stored views per training image that the head was also fitted on
    without_views: dict[str, Any] | None = None  # the leaderboard row of the same head, fitted without views

    def row(self) -> dict[str, Any]:
        """Return this head as a row of a leaderboard."""
        row = leaderboard_row(self.head, self.val, self.n["val"], self.fit_seconds)
        if self.without_views is not None:
            row |= {"views": self.views, "note": gained(self.views, self.val, self.without_views["val"])}
        return row

    def to_json(self, run_id: str = "", head_id: str = "") -> dict[str, Any]:
        """Return the JSON object of ``penult train``."""
        return {
            "run_id": run_id,
            "head_id": head_id,
            "feature_set": self.feature_set,
            **self.row(),
            "test": self.test,
            "test_ci": list(self.test_ci),
            "metrics": self.metrics,
            "baseline": self.baseline,
            "n": self.n,
            "notes": list(self.notes),
            "history": list(self.history),
            "calibration": self.calibration,
            "abstain": list(self.abstain),
            "without_views": self.without_views,
        }


def train(
    dataset: Dataset,
    spec: HeadSpec,
    seed: int = 0,
    augmented: Dataset | None = None,
) -> TrainResult:
    """Fit one head and score it.

    Args:
        dataset: with rows in each split.
        spec: the head to fit.
        seed: of everything random in the fit.
        augmented: the training rows, then their views, to fit on; the head is then also fitted on the training rows
            alone, to report what the views gained.

    Raises:
        HeadError: the dataset cannot train or score a head.
        UsageError: an unknown head, parameter or value.
    """
    notes = check_dataset(dataset)
    parts = {split: dataset.part(split) for split in SPLITS}
    fitted, seconds = timed_fit(spec, parts["train"], parts["val"], seed)
    if augmented is None:
        return score(fitted, parts, seconds, notes)
    val = accuracy(fitted, parts["val"])
    without = leaderboard_row(fitted, val, len(parts["val"]), seconds)
    fitted, seconds = timed_fit(spec, augmented, parts["val"], seed)
    views = count_views(augmented, parts["train"])
    return replace(score(fitted, parts, seconds, notes), views=views, without_views=without)


def leaderboard_row(head: Head, val: float, n: int, seconds: float) -> dict[str, Any]:
    """Return the leaderboard row of a head whose share of right predictions on n validation rows is ``val``."""
    ci = list(evaluate.wilson(val, n))
    return {"head": head.family, "params": head.params, "val": val, "val_ci": ci, "fit_seconds": seconds}


def count_views(augmented: Dataset, train: Dataset) -> int:
    """Return the number of views per training row."""
    return len(augmented) // len(train) - 1


def gained(views: int, val: float, without: float, where: str = "on validation") -> str:
    """Return, in words, how views changed a head's score."""
    return f"with {views} views per image: {100 * (val - without):+.1f} points {where} over the images alone"


def timed_fit(spec: HeadSpec, train: Dataset, val: Dataset, seed: int) -> tuple[Head, float]:
    """Fit a head; return it and the seconds that the fit took."""
    started = time.perf_counter()
    head = registry.fit(spec, train.X, train.y, seed, (val.X, val.y))
    return head, round(time.perf_counter() - started, 3)


def score(head: Head, parts: Mapping[str, Dataset], seconds: float, notes: list[str]) -> TrainResult:
    """Score a fitted head on validation and on test; no other function of training or comparison predicts test."""
    train, val, test = (parts[split] for split in SPLITS)
    val_right = head.predict(val.X) == val.y
    val_top1 = float(val_right.mean())
    scores = head.scores(test.X)
    metrics = evaluate.summary(test.y, scores, head.classes)
    right = head.classes[scores.argmax(axis=1)] == test.y
    confidence = head.probabilities(test.X).max(axis=1)
    names, counts = np.unique(train.y, return_counts=True)
    return TrainResult(
        feature_set=train.feature_set,
        fingerprint=train.fingerprint,
        head=head,
        val=val_top1,
        val_ci=evaluate.wilson(val_top1, len(val)),
        test=metrics["top1"],
        test_ci=evaluate.wilson(metrics["top1"], len(test)),
        metrics=metrics,
        baseline=float(np.mean(test.y == names[counts.argmax()])),
        fit_seconds=seconds,
        n={"train": len(train), "val": len(val), "test": len(test), "classes": len(names)},
        notes=tuple(notes),
        history=head.history,
        calibration=_calibration(head, scores, confidence, right),
        abstain=tuple(calibration.abstain(head.probabilities(val.X).max(axis=1), val_right, confidence, right)),
    )


def _calibration(head: Head, scores: np.ndarray, confidence: np.ndarray, right: np.ndarray) -> dict[str, Any] | None:
    """Compare confidences with and without the temperature, see ``TrainResult``."""
    if registry.family(head.family).votes:
        return None
    plain = softmax(scores).max(axis=1)
    return {
        "temperature": head.arrays["temperature"].item(),
        "ece_before": calibration.expected_calibration_error(plain, right),
        "ece_after": calibration.expected_calibration_error(confidence, right),
        "before": calibration.reliability(plain, right),
        "after": calibration.reliability(confidence, right),
    }


def accuracy(head: Head, part: Dataset) -> float:
    """Return the share of a part's rows that the head predicts right."""
    return float(np.mean(head.predict(part.X) == part.y))


def misclassified(head: Head, part: Dataset) -> list[dict[str, Any]]:
    """Return a part's rows that the head predicts wrong, the most confident mistake first.

    A row has "uri", "true", "predicted" and "probability" (of the predicted class).
    """
    probabilities = head.probabilities(part.X)
    predicted, confidence = head.predict(part.X), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != part.y)
    return [
        {
            "uri": str(part.uris[row]),
            "true": str(part.y[row]),
            "predicted": str(predicted[row]),
            "probability": float(confidence[row]),
        }
        for row in wrong[np.argsort(-confidence[wrong], kind="stable")]
    ]


def check_finite(dataset: Dataset) -> None:
    """Raise HeadError if features that are in memory are not finite; streamed features are not read.

    Raises:
        HeadError: some features are not finite.
    """
    bad = np.flatnonzero(~np.isfinite(dataset.X).all(axis=1))
    if len(bad):
        raise HeadError(
            f"{len(bad)} of {len(dataset)} rows of {dataset.feature_set} have features that are not finite, the first "
            f"is that of {dataset.uris[bad[0]]}: run `penult verify`, then embed again."
        )


def check_dataset(dataset: Dataset, splits: Sequence[str] = SPLITS) -> list[str]:
    """Raise HeadError if a dataset cannot train and score a head; return notes on classes that train lacks.

    Args:
        dataset: the rows.
        splits: those that must not be empty.

    Raises:
        HeadError: no labelled rows, an empty split, fewer than two classes, or features not finite.
    """
    if len(dataset) == 0:
        raise HeadError(
            f"Feature set {dataset.feature_set} has no labelled rows: import labels with `penult label FILE`."
        )
    for split in splits:
        if not np.any(dataset.splits == split):
            raise HeadError(
                f"The {split} split of {dataset.feature_set} is empty: "
                "label more images, or give them a split with `penult label FILE`."
            )
    known = np.unique(dataset.y[dataset.splits == "train"])
    if len(known) < 2:
        raise HeadError(f"A head needs at least two classes to train on; the train split has only {str(known[0])!r}.")
    check_finite(dataset)
    notes = []
    for split in ("val", "test"):
        here = dataset.y[dataset.splits == split]
        unknown = np.setdiff1d(here, known)
        if len(unknown):
            rows = int(np.isin(here, unknown).sum())
            names = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
            notes.append(
                f"{split}: {rows} of {len(here)} rows count as wrong, as train has no row of their class ({names})."
            )
    return notes
