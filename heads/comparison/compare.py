"""The comparison of heads: fit many, choose on validation or by cross-validation, score the winner once on test."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featurestore.dataset import Dataset
from featurestore.errors import HeadError, UsageError
from featurestore.limits import check_amount, check_count, check_seed
from heads import registry
from heads.comparison import streaming
from heads.comparison.fit_cache import Results
from heads.comparison.space import DEFAULT, Candidate, Search
from heads.comparison.trials import HOLD_OUT, Progress, Table, Trial, Tried, run
from heads.evaluation import learning_curve as learning
from heads.evaluation import metrics
from heads.evaluation.significance import mcnemar
from heads.train import TrainResult, accuracy, check_dataset, check_finite, count_views, gained, score, timed_fit

MAX_FOLDS = MAX_SEEDS = 100
MAX_SHOTS = 1_000_000  # images per class
TIED = 0.05  # p-value of the paired test from which on a head counts as tied with the first
CURVE_SHARES = (0.1, 0.18, 0.32, 0.56, 1.0)  # of the training rows
CURVE_SECONDS = 60.0  # a head that takes longer to fit gets no learning curve


@dataclass(frozen=True)
class CompareResult:
    """A leaderboard, best first, and its winner.

    Each row of the leaderboard has "head", "params", "class_weight", "val", "val_ci" and "fit_seconds". Some rows have
    more: "feature_set" if several were compared; "views", the number of views per training image it was also fitted
    on; "note", a remark; "val_range" if several seeds were tried ("val" is then their mean). Every row after the first
    has "p_value", of McNemar's test against the first row, and "tied". A row whose fit failed has "error", and its
    "val" and "val_ci" are None. All rows are scored on the same images: those of validation, or with folds all
    training images, each by the fit that left its fold out.

    ``folds`` is 0 if validation chose. ``learning_curve`` is the winner's. ``fewshot`` has rows per family, see
    ``compare``.
    """

    leaderboard: list[dict[str, Any]]
    winner: TrainResult
    folds: int = 0
    learning_curve: dict[str, Any] | None = None
    fewshot: list[dict[str, Any]] | None = None

    def to_json(self, run_id: str = "", head_id: str = "", report: str = "") -> dict[str, Any]:
        """Return the JSON object of ``penult compare``."""
        told = self.winner.to_json()
        kept = ("head", "params", "val", "test", "test_ci", "metrics", "calibration", "abstain", "history")
        return {
            "run_id": run_id,
            "feature_set": self.winner.feature_set,
            "metric": "top1",
            "chosen_by": f"{self.folds}-fold cross-validation" if self.folds else "validation",
            "leaderboard": self.leaderboard,
            "winner": {"head_id": head_id, **{name: told[name] for name in kept}},
            "baseline": self.winner.baseline,
            "n": self.winner.n,
            "notes": list(self.winner.notes),
            "learning_curve": self.learning_curve,
            "fewshot": self.fewshot,
            "report": report,
        }


def check(seeds: Sequence[int], folds: int, fewshot: Sequence[int], budget: float | None) -> None:
    """Raise UsageError for invalid arguments of ``compare``, before any features are read.

    Raises:
        UsageError: no seed or too many, one fold or too many, few-shot with no image, or no time.
    """
    if not seeds or seeds[MAX_SEEDS:]:  # len() of a huge range overflows
        got = "more" if seeds else "none"
        raise UsageError(f"Expected: --seeds, at least one seed and at most {MAX_SEEDS}. Got: {got}.")
    for seed in seeds:
        check_seed("a seed", seed)
    if folds != 0 and not 2 <= folds <= MAX_FOLDS:
        raise UsageError(
            f"Expected: --cv of at least 2 folds and at most {MAX_FOLDS}, or 0 to choose on validation. Got: {folds}."
        )
    for k in fewshot:
        check_count("--fewshot-k", k, 1, MAX_SHOTS)
    if budget is not None:
        check_amount("--budget in seconds", budget)


def compare(
    datasets: Dataset | Sequence[Dataset],
    search: Search = DEFAULT,
    *,
    seeds: Sequence[int] = (0,),
    folds: int = 0,
    fewshot: Sequence[int] = (),
    budget: float | None = None,
    results: Results | None = None,
    progress: Progress | None = None,
    augmented: Dataset | None = None,
) -> CompareResult:
    """Fit the candidates of a search on train, choose by top-1 on validation or over folds, score the winner on test.

    A tie goes to the earlier, simpler candidate. A family whose fit is random is fitted once per seed and ranked by
    the mean; the head of the first seed is kept.

    Args:
        datasets: each has rows in every split; several are feature sets of the same images, in the same order.
        search: the candidates to try.
        seeds: at least one.
        folds: 0 to choose on validation, else the number of folds that train is cut into. Validation then only sets
            the winner's temperature and, if it is a dense net, stops its final fit early.
        fewshot: for each k, the best candidate of each family is fitted to k rows per class and scored on validation.
            The rows are drawn anew for each of at least three seeds.
        budget: seconds after which no new fit begins; the fits done until then are ranked.
        results: outcomes of earlier comparisons; a fit with a known outcome is not repeated.
        progress: called after each fit, in this thread, with (done, total).
        augmented: the training rows, then their views. The best candidate is also fitted on these and gets one more
            row, scored as the others are. With folds, the views of the images in the left-out fold are left out too.

    Raises:
        HeadError: a dataset cannot train or score a head, or no candidate could be fitted.
        UsageError: an unknown head or parameter, views with several feature sets, or what ``check`` refuses.
    """
    check(seeds, folds, fewshot, budget)
    deadline = time.monotonic() + (np.inf if budget is None else budget)
    datasets = [datasets] if isinstance(datasets, Dataset) else datasets
    if augmented is not None and len(datasets) > 1:
        raise UsageError("--views goes with one feature set: leave --views out, or name one --set.")
    notes = [note for dataset in datasets[:1] for note in check_dataset(dataset)]
    for dataset in datasets[1:]:
        check_dataset(dataset)
    streamed = any(dataset.stored is not None for dataset in datasets)
    if streamed:
        _refuse(folds=folds, fewshot=fewshot, sets=len(datasets) > 1)
    tables = [Table(streaming.split(dataset), folds) for dataset in datasets]
    for table in tables:
        check_finite(table.parts["val"])
        check_finite(table.parts["test"])
    train, val = tables[0].parts["train"], tables[0].parts["val"]
    notes += _few_shot_notes(train.y, fewshot)
    candidates, skipped = search.candidates(train.y, train.width, len(train if folds else val))
    if streamed:
        candidates, left_out = _streaming(candidates)
        skipped += left_out
    trials = [
        Trial(table, at, seed, fold)
        for table in range(len(tables))
        for at, candidate in enumerate(candidates)
        for seed in (seeds if registry.FAMILIES[candidate.head].random else seeds[:1])
        for fold in (range(folds) if folds else [HOLD_OUT])
    ]
    results = results or Results()
    tried = run(trials, tables, candidates, results, deadline, progress)
    board = _ranked(_entries(trials, tried, tables, candidates))
    if left := len(tables) * len(candidates) - len(board):
        skipped.append(f"{left} candidates were not tried within {budget:g} s; the same command goes on with them.")
    if not board or board[0].row["val"] is None:
        said = next(iter(tried.errors.values()), f"nothing was done within {budget} s.")
        raise HeadError(f"None of {len(candidates)} heads could be fitted; the first said: {said}")

    if augmented is not None:
        tables.append(Table(tables[board[0].table].parts, folds, augmented))
        entries, viewed = _with_views(board[0], trials, tables, candidates, results, deadline)
        if not entries:
            skipped.append(f"The views were not tried within {budget:g} s; the same command goes on with them.")
        board = _ranked(board + entries)
        if board[0].table == len(tables) - 1:
            tried = viewed
    table, candidate = tables[board[0].table], candidates[board[0].candidate]
    head, seconds = _head_of(board[0], tried, tables, candidates, seeds[0])
    result = score(head, table.parts, seconds, notes + skipped)
    return CompareResult(
        [entry.row for entry in board],
        replace(result, views=board[0].row.get("views", 0)),
        folds,
        None if streamed else _learning_curve(table.parts, candidate, seconds, deadline),
        _fewshot(board, table, candidates, fewshot, max(3, len(seeds))) if fewshot else None,
    )


@dataclass(frozen=True)
class _Entry:
    """A row of the leaderboard, its table and candidate; ``right`` bool (m,): rows that the first seed got right."""

    table: int
    candidate: int
    right: np.ndarray
    row: dict[str, Any]


def _entries(
    trials: Sequence[Trial], tried: Tried, tables: Sequence[Table], candidates: Sequence[Candidate]
) -> list[_Entry]:
    """Return an entry for each candidate that was tried, in the order of the trials."""
    by_candidate: dict[tuple[int, int], list[Trial]] = {}
    for trial in trials:
        by_candidate.setdefault((trial.table, trial.candidate), []).append(trial)
    entries = []
    for (table, at), some in by_candidate.items():
        error = next((tried.errors[trial] for trial in some if trial in tried.errors), None)
        if error is None and not all(trial in tried.outcomes for trial in some):
            continue  # the budget ended before all of its trials were done
        candidate = candidates[at]
        row: dict[str, Any] = {
            "head": candidate.head,
            "params": candidate.params,
            "class_weight": candidate.class_weight,
            "val": None,
            "val_ci": None,
            "fit_seconds": 0.0,
        }
        if len({one.name for one in tables}) > 1:
            row["feature_set"] = tables[table].name
        if error is not None:
            entries.append(_Entry(table, at, np.zeros(0), row | {"error": error}))
            continue
        by_seed: dict[int, list[np.ndarray]] = {}
        for trial in some:  # folds in ascending order, so that every candidate has the same rows in the same order
            by_seed.setdefault(trial.seed, []).append(tried.outcomes[trial].right)
        right = np.array([np.concatenate(parts) for parts in by_seed.values()])
        values = right.mean(axis=1)
        row["val"] = float(values.mean())
        row["val_ci"] = list(metrics.wilson(row["val"], right.shape[1]))
        row["fit_seconds"] = round(sum(tried.outcomes[trial].seconds for trial in some) / len(by_seed), 3)
        if len(values) > 1:
            row["val_range"] = [float(values.min()), float(values.max())]
        if note := next((tried.outcomes[trial].note for trial in some if tried.outcomes[trial].note), ""):
            row["note"] = note
        entries.append(_Entry(table, at, right[0], row))
    return entries


def _ranked(entries: Sequence[_Entry]) -> list[_Entry]:
    """Return the entries, best first, ties in their given order; test each against the first."""
    ranked = sorted(entries, key=lambda entry: -1.0 if entry.row["val"] is None else entry.row["val"], reverse=True)
    for entry in ranked[1:]:
        if len(entry.right):
            entry.row["p_value"] = mcnemar(ranked[0].right, entry.right)
            entry.row["tied"] = entry.row["p_value"] >= TIED
    return ranked


def _with_views(
    best: _Entry,
    trials: Sequence[Trial],
    tables: Sequence[Table],
    candidates: Sequence[Candidate],
    results: Results,
    deadline: float,
) -> tuple[list[_Entry], Tried]:
    """Repeat the best candidate's trials on the last table, which has views; return its entry if the budget allows."""
    own = [trial for trial in trials if (trial.table, trial.candidate) == (best.table, best.candidate)]
    again, table = [replace(trial, table=len(tables) - 1) for trial in own], tables[-1]
    tried = run(again, tables, candidates, results, deadline)
    entries = _entries(again, tried, tables, candidates)
    for row in (entry.row for entry in entries):
        row["views"] = count_views(table.training, table.parts["train"])
        if row["val"] is not None:
            where = "on validation" if table.folds is None else "over the folds"
            told = gained(row["views"], row["val"], best.row["val"], where)
            row["note"] = "; ".join(filter(None, [row.get("note"), told])) + "."
    return entries, tried


def _refuse(**options: object) -> None:
    """Raise UsageError if an option is set that needs the training rows in memory."""
    names = {"folds": "--cv", "fewshot": "--fewshot-k", "sets": "several --set"}
    if asked := [names[option] for option, value in options.items() if value]:
        raise UsageError(
            f"{' and '.join(asked)} cannot be had while training features are streamed, as they exceed half of "
            "--memory-limit: raise it, or leave these out."
        )


def _streaming(candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[str]]:
    """Return the candidates that can be fitted to streamed rows, and notes on the others."""
    linear = [candidate for candidate in candidates if registry.FAMILIES[candidate.head].loss]
    families = ", ".join(name for name, family in registry.FAMILIES.items() if family.loss)
    if not linear:
        raise UsageError(f"Within --memory-limit only {families} can be fitted: raise it, or name one of these.")
    others = ", ".join(dict.fromkeys(c.head for c in candidates if c not in linear))
    notes = ["The training features were streamed, as they exceed half of --memory-limit: there is no learning curve."]
    if others:
        notes.append(f"{others}: left out, as only {families} can be fitted to streamed features.")
    return linear, notes


def _head_of(
    entry: _Entry, tried: Tried, tables: Sequence[Table], candidates: Sequence[Candidate], seed: int
) -> tuple[Any, float]:
    """Return the winner's head and its fit's seconds.

    The head was fitted in this comparison, or is fitted now: if only its outcome was known, or if folds chose it.
    """
    table, candidate = tables[entry.table], candidates[entry.candidate]
    train, val = table.training, table.parts["val"]
    if train.stored is not None and tried.best is None:
        tried = run([Trial(entry.table, entry.candidate, seed, HOLD_OUT)], tables, candidates, Results())
    if tried.best is not None:
        trial, head = tried.best
        if (trial.table, trial.candidate, trial.seed) == (entry.table, entry.candidate, seed):
            return registry.calibrated(head, val.X, val.y), tried.outcomes[trial].seconds
    return timed_fit(candidate.head, train, val, candidate.params, candidate.class_weight, seed)


def _learning_curve(
    parts: dict[str, Dataset], candidate: Candidate, seconds: float, deadline: float
) -> dict[str, Any] | None:
    """Return the winner's validation scores over the number of training rows, and the score to expect at twice all."""
    train, val = parts["train"], parts["val"]
    if seconds > CURVE_SECONDS or time.monotonic() > deadline:
        return None
    order = _by_turns(train.y, seed=0)
    points = []
    for share in CURVE_SHARES:
        rows = order[: round(share * len(train))]
        try:
            head, _ = timed_fit(candidate.head, train.take(rows), val, candidate.params, candidate.class_weight, 0)
        except (HeadError, UsageError):  # only one class, or too few rows for these parameters
            continue
        value = accuracy(head, val)
        points.append({"n": len(rows), "val": value, "val_ci": list(metrics.wilson(value, len(val)))})
    expected = learning.expect(points, 2 * len(train))
    return {"head": candidate.head, "params": candidate.params, "points": points, "at_twice": expected}


def _fewshot(
    board: Sequence[_Entry], table: Table, candidates: Sequence[Candidate], ks: Sequence[int], draws: int
) -> list[dict[str, Any]]:
    """Score the best candidate of each family, fitted to k rows per class: the mean and range over draws."""
    best: dict[str, Candidate] = {}
    for entry in board:
        if entry.row["val"] is not None:
            best.setdefault(entry.row["head"], candidates[entry.candidate])
    train, val = table.parts["train"], table.parts["val"]
    rows = []
    for k in ks:
        for name, candidate in best.items():
            values = []
            for draw in range(draws):
                some = train.take(_first_of_each(train.y, _by_turns(train.y, draw), k))
                params = dict(candidate.params)
                if "k" in params:
                    params["k"] = min(params["k"], k)
                head, _ = timed_fit(name, some, val, params, None, draw)
                values.append(accuracy(head, val))
            rows.append(
                {
                    "k": k,
                    "head": name,
                    "params": params,
                    "val": float(np.mean(values)),
                    "val_range": [min(values), max(values)],
                }
            )
    return rows


def _few_shot_notes(y: np.ndarray, ks: Sequence[int]) -> Iterator[str]:
    """Yield a note for each k if some classes of training labels y (n,) have fewer than k images.

    Raises:
        UsageError: every class has fewer than k, so that each draw would be the whole train split.
    """
    counts = np.unique(y, return_counts=True)[1]
    for k in ks:
        if k > counts.max():
            raise UsageError(
                f"Expected: --fewshot-k of at most {counts.max():,}, what the largest class of train has. Got: {k}."
            )
        if fewer := int((counts < k).sum()):
            yield (
                f"Few-shot with {k:,} images per class: {fewer} of {len(counts)} classes have fewer in train, "
                f"the smallest {counts.min():,}, and gave all of theirs."
            )


def _by_turns(y: np.ndarray, seed: int) -> np.ndarray:
    """Return a random order of the rows, int (n,), in which any first m rows have about the class shares of y (n,)."""
    draw = np.random.default_rng(seed)
    shuffled = draw.permutation(len(y))
    _, codes, counts = np.unique(y[shuffled], return_inverse=True, return_counts=True)
    by_class = np.argsort(codes, kind="stable")
    place = np.empty(len(y))
    starts = np.cumsum(counts) - counts
    place[by_class] = (np.arange(len(y)) - starts[codes[by_class]] + draw.random(len(y))) / counts[codes[by_class]]
    return shuffled[np.argsort(place, kind="stable")]


def _first_of_each(y: np.ndarray, order: np.ndarray, k: int) -> np.ndarray:
    """Return the first k rows of each class in an order of the rows y (n,)."""
    _, codes = np.unique(y[order], return_inverse=True)
    by_class = np.argsort(codes, kind="stable")
    counts = np.bincount(codes)
    turn = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)
    return order[by_class[turn < k]]
