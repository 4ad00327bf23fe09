"""Fit many heads, choose by validation, score the winner once on test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featurestore.dataset import SPLITS, Dataset
from featurestore.errors import HeadError, UsageError
from heads import evaluate, registry
from heads.head import Head
from heads.train import (
    TrainResult,
    accuracy,
    check_dataset,
    convergence_notes,
    count_views,
    gained,
    score,
    timed_fit,
)

# Beyond these a default comparison leaves a family out; naming it fits it all the same.
RBF_MAX_ROWS, RBF_MAX_CLASSES = 10_000, 100  # time grows with the square of either
SVM_MAX_WORK = 1e9  # rows x width x classes: about a minute a fit

Progress = Callable[[int, int, dict[str, Any]], None]


@dataclass(frozen=True)
class CompareResult:
    """A leaderboard, best first, and its winner.

    A row of the leaderboard has "head", "params", "val", "val_ci" and "fit_seconds"; "note" where there is
    something to say; "val_range" where several seeds were tried, "val" then being their mean; and "error"
    instead of a score where the fit failed ("val" and "val_ci" are None).
    """

    leaderboard: list[dict[str, Any]]
    winner: TrainResult

    def to_json(self, run_id: str = "", head_id: str = "", report: str = "") -> dict[str, Any]:
        """Return the JSON object of ``penult compare``."""
        return {
            "run_id": run_id,
            "feature_set": self.winner.feature_set,
            "metric": "top1",
            "leaderboard": self.leaderboard,
            "winner": {
                "head_id": head_id,
                "head": self.winner.head.family,
                "params": self.winner.head.params,
                "val": self.winner.val,
                "test": self.winner.test,
                "test_ci": list(self.winner.test_ci),
                "metrics": self.winner.metrics,
                "history": list(self.winner.history),
            },
            "baseline": self.winner.baseline,
            "n": self.winner.n,
            "notes": list(self.winner.notes),
            "report": report,
        }


def compare(
    dataset: Dataset,
    heads: Sequence[str] | None = None,
    class_weight: str | None = None,
    seeds: Sequence[int] = (0,),
    progress: Progress | None = None,
    augmented: Dataset | None = None,
) -> CompareResult:
    """Fit the grid of each family on train, choose by top-1 on validation, score the winner on test.

    A tie goes to the earlier, simpler row of the registry. Families whose fit is random are fitted once
    a seed and judged by the mean; the head that is kept is that of the first seed.

    Args:
        dataset: with rows in each split.
        heads: families to try; None tries all that suit the size of the data.
        class_weight: None or "balanced"; families that cannot weight classes are fitted without.
        seeds: at least one.
        progress: called after each fit, in this thread, with (done, total, row of the leaderboard).
        augmented: the training rows with views after them; the best head is fitted on them too, as one more row.

    Raises:
        HeadError: the dataset cannot train or score a head, or no candidate could be fitted.
        UsageError: an unknown head.
    """
    if not seeds:
        raise UsageError("Compare needs at least one seed.")
    notes = check_dataset(dataset)
    parts = {split: dataset.part(split) for split in SPLITS}
    names, skipped = _choose(heads, parts["train"])
    candidates = [(name, registry.complete(name, params)) for name in names for params in registry.FAMILIES[name].grid]
    rows, winner = _fit_all(candidates, parts, class_weight, seeds, progress)
    leaderboard = sorted(rows, key=_rank, reverse=True)  # stable: a tie keeps the registry's order
    if winner is None:
        raise HeadError(f"None of {len(rows)} heads could be fitted; the first said: {rows[0]['error']}")
    if augmented is not None:
        row, head = _fit_with_views(leaderboard[0], parts, augmented, class_weight, seeds)
        leaderboard = sorted([*leaderboard, row], key=_rank, reverse=True)
        winner = head if head is not None and leaderboard[0] is row else winner
    result = score(winner, parts, leaderboard[0]["fit_seconds"], notes + skipped)
    return CompareResult(leaderboard, replace(result, views=leaderboard[0].get("views", 0)))


def _fit_with_views(
    best: dict[str, Any],
    parts: dict[str, Dataset],
    augmented: Dataset,
    class_weight: str | None,
    seeds: Sequence[int],
) -> tuple[dict[str, Any], Head | None]:
    """Fit the best candidate on the views too; its row says what they gained."""
    views = count_views(augmented, parts["train"])
    with convergence_notes() as said:
        row, head = _fit_one(best["head"], best["params"], parts | {"train": augmented}, class_weight, seeds, said)
    notes = [row["note"]] if "note" in row else []
    if row["val"] is not None:
        notes.append(gained(views, row["val"], best["val"]) + ".")
    return row | {"views": views, "note": " ".join(notes)}, head


def _rank(row: dict[str, Any]) -> float:
    return -1.0 if row["val"] is None else row["val"]


def _choose(heads: Sequence[str] | None, train: Dataset) -> tuple[list[str], list[str]]:
    """Return the families to try, in the registry's order, and a note on each that was left out."""
    if heads is not None:
        for name in heads:
            registry.family(name)
        return [name for name in registry.FAMILIES if name in heads], []
    (rows, width), classes = train.X.shape, len(np.unique(train.y))
    slow = {
        "rbf-svm": rows > RBF_MAX_ROWS or classes > RBF_MAX_CLASSES,
        "svm": rows * width * classes > SVM_MAX_WORK,
    }
    notes = [
        f"{name} was left out: it is slow for {rows:,} rows and {classes} classes."
        for name, is_slow in slow.items()
        if is_slow
    ]
    return [name for name in registry.FAMILIES if not slow.get(name)], notes


def _fit_all(
    candidates: Sequence[tuple[str, dict[str, Any]]],
    parts: dict[str, Dataset],
    class_weight: str | None,
    seeds: Sequence[int],
    progress: Progress | None,
) -> tuple[list[dict[str, Any]], Head | None]:
    """Fit the candidates side by side; return a row for each, in their order, and the best head, the only one kept."""
    from threadpoolctl import threadpool_limits

    cpus = os.cpu_count() or 1
    workers = min(cpus, 4)
    rows: dict[int, dict[str, Any]] = {}
    best, winner = -1, None
    with (
        convergence_notes() as said,
        threadpool_limits(max(1, cpus // workers)),
        ThreadPoolExecutor(workers) as pool,
    ):
        futures = {
            pool.submit(_fit_one, name, params, parts, class_weight, seeds, said): i
            for i, (name, params) in reversed(list(enumerate(candidates)))  # the longest first
        }
        try:
            for future in as_completed(list(futures)):
                i = futures.pop(future)
                rows[i], head = future.result()
                if head is not None and (winner is None or (_rank(rows[i]), -i) > (_rank(rows[best]), -best)):
                    best, winner = i, head
                del future, head  # a head may hold the training rows
                if progress:
                    progress(len(rows), len(candidates), rows[i])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [rows[i] for i in range(len(candidates))], winner


def _fit_one(
    name: str,
    params: dict[str, Any],
    parts: dict[str, Dataset],
    class_weight: str | None,
    seeds: Sequence[int],
    said: Callable[[], Iterable[str]],
) -> tuple[dict[str, Any], Head | None]:
    """Fit one candidate, once a seed where that matters, and score it on validation."""
    family = registry.FAMILIES[name]
    row: dict[str, Any] = {"head": name, "params": params, "val": None, "val_ci": None, "fit_seconds": 0.0}
    try:
        fits = [
            timed_fit(name, parts["train"], parts["val"], params, class_weight if family.weighted else None, seed)
            for seed in (seeds if family.random else seeds[:1])
        ]
    except Exception as error:  # one failed candidate must not cost the others
        return row | {"error": f"{type(error).__name__}: {error}"}, None
    values = [accuracy(head, parts["val"]) for head, _ in fits]
    row["val"] = float(np.mean(values))
    row["val_ci"] = list(evaluate.wilson(row["val"], len(parts["val"])))
    row["fit_seconds"] = fits[0][1]
    if len(values) > 1:
        row["val_range"] = [min(values), max(values)]
    notes = dict.fromkeys(said())
    if class_weight and not family.weighted:
        notes[f"fitted without class weights: {name} cannot use them."] = None
    if notes:
        row["note"] = " ".join(notes)
    return row, fits[0][0]
