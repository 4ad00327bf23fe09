"""The comparison of heads: fit many, choose on validation or by cross-validation, score the winner once on test."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featurestore.dataset import Dataset
from featurestore.errors import HeadError, UsageError
from heads import registry
from heads.base import Head
from heads.comparison import streaming
from heads.comparison.fewer_rows import few_shot, learning_curve
from heads.comparison.fit_cache import Results
from heads.comparison.space import DEFAULT, Evaluation, Search
from heads.comparison.subsampling import few_shot_notes
from heads.comparison.tables import HOLD_OUT, Table
from heads.comparison.trials import Experiment, Progress, Trial, Tried
from heads.evaluation import metrics
from heads.evaluation.significance import holm, mcnemar
from heads.spec import HeadSpec
from heads.train import TrainResult, check_dataset, check_finite, count_views, gained, score

TIED = 0.05  # corrected p-value of the paired test from which on a head counts as tied with the first
CURVE_SECONDS = 60.0  # a head that takes longer to fit gets no learning curve
MIN_DRAWS = 3  # of few rows per class
GO_ON = "the same command goes on with them."


@dataclass(frozen=True)
class CompareResult:
    """A leaderboard, best first, and its winner.

    Each row of the leaderboard has "head", "params", "class_weight", "val", "val_ci" and "fit_seconds". Some rows have
    more: "feature_set" if several were compared; "views", the number of views per training image it was also fitted
    on; "note", a remark; "val_range" if several seeds were tried ("val" is then their mean). Every row after the first
    has "p_value", of McNemar's test against the first row; "p_corrected", the same after Holm's correction for all
    rows; and "tied", by the latter. A row whose fit failed has "error", and its "val" and "val_ci" are None. All rows
    are scored on the same images: those of validation, or with folds all training images, each by the fit that left its
    fold out.

    ``chosen`` is the winner's row, the first unless the simplest is preferred, and ``simplest`` that of the simplest
    head that is tied with the first: the numbers of rows of the leaderboard. ``folds`` is 0 if validation chose.
    ``learning_curve`` is the winner's. ``fewshot`` has rows per family, see ``Evaluation``.
    """

    leaderboard: list[dict[str, Any]]
    winner: TrainResult
    chosen: int = 0
    simplest: int = 0
    folds: int = 0
    learning_curve: dict[str, Any] | None = None
    fewshot: list[dict[str, Any]] | None = None

    @classmethod
    def of(cls, result: TrainResult) -> CompareResult:
        """Return a head that was trained alone as the winner of a leaderboard of its own."""
        return cls([row for row in (result.row(), result.without_views) if row], result)

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
            "chosen": self.chosen,
            "simplest": self.simplest,
            "winner": {"head_id": head_id, **{name: told[name] for name in kept}},
            "baseline": self.winner.baseline,
            "n": self.winner.n,
            "notes": list(self.winner.notes),
            "learning_curve": self.learning_curve,
            "fewshot": self.fewshot,
            "report": report,
        }


def compare(
    datasets: Dataset | Sequence[Dataset],
    search: Search = DEFAULT,
    evaluation: Evaluation = Evaluation(),
    *,
    results: Results | None = None,
    progress: Progress | None = None,
    augmented: Dataset | None = None,
) -> CompareResult:
    """Fit the candidates of a search on train, choose by top-1 on validation or over folds, score the winner on test.

    Of equal scores, the earlier, simpler candidate is first.

    Args:
        datasets: each has rows in every split; several are feature sets of the same images, in the same order.
        search: the candidates to try.
        evaluation: how to evaluate them.
        results: outcomes of earlier comparisons; a fit with a known outcome is not repeated. The winner's head joins
            them, so that the same comparison again fits nothing.
        progress: called after each fit, in this thread, with (done, total).
        augmented: the training rows, then their views. The best candidate is also fitted on these and gets one more
            row, scored as the others are. With folds, the views of the images in the left-out fold are left out too.

    Raises:
        HeadError: a dataset cannot train or score a head, or no candidate could be fitted.
        UsageError: an unknown head or parameter, views with several feature sets, or what ``evaluation`` refuses.
    """
    evaluation.check()
    deadline = time.monotonic() + (np.inf if evaluation.budget is None else evaluation.budget)
    datasets = [datasets] if isinstance(datasets, Dataset) else datasets
    if augmented is not None and len(datasets) > 1:
        raise UsageError("--views goes with one feature set: leave --views out, or name one --set.")
    tables, notes = _tables(datasets, evaluation)
    candidates, skipped = _candidates(search, tables, evaluation)
    experiment = Experiment(tables, candidates, results or Results(), deadline)
    trials = _trials(experiment, evaluation)
    tried = experiment.run(trials, progress)
    board = _ranked(_entries(trials, tried, experiment))
    if left := len(tables) * len(candidates) - len(board):
        skipped.append(f"{left} candidates were not tried within {evaluation.budget:g} s; {GO_ON}")
    if not board or board[0].row["val"] is None:
        said = next(iter(tried.errors.values()), f"nothing was done within {evaluation.budget} s.")
        raise HeadError(f"None of {len(candidates)} heads could be fitted; the first said: {said}")

    if augmented is not None:
        experiment, entries, again = _with_views(board[0], trials, experiment, augmented)
        if not entries:
            skipped.append(f"The views were not tried within {evaluation.budget:g} s; {GO_ON}")
        board = _ranked(board + entries)
        if entries and _winner(board, evaluation.prefer).table == len(tables):
            tried = again
    winner = _winner(board, evaluation.prefer)
    table = experiment.tables[winner.table]
    head, seconds = _head_of(winner, tried, experiment, evaluation.first_seed)
    result = score(head, table.parts, seconds, notes + skipped)
    images = next(each for each in tables if each.name == table.name).whole()  # without views
    return CompareResult(
        [entry.row for entry in board],
        replace(result, views=winner.row.get("views", 0)),
        board.index(winner),
        board.index(_winner(board, "simple")),
        evaluation.folds,
        _learning_curve(experiment, images, candidates[winner.candidate], evaluation.first_seed, head, seconds),
        _fewshot(experiment, images, board, evaluation),
    )


def _tables(datasets: Sequence[Dataset], evaluation: Evaluation) -> tuple[list[Table], list[str]]:
    """Return the datasets as tables, and notes on their classes.

    Raises:
        HeadError: a dataset cannot train or score a head.
        UsageError: training rows are streamed, but must be in memory for this evaluation.
    """
    notes = [note for dataset in datasets[:1] for note in check_dataset(dataset)]
    for dataset in datasets[1:]:
        check_dataset(dataset)
    if any(dataset.stored is not None for dataset in datasets):
        _refuse(folds=evaluation.folds, fewshot=evaluation.fewshot, sets=len(datasets) > 1)
    tables = [Table(streaming.split(dataset), evaluation.folds) for dataset in datasets]
    for table in tables:
        check_finite(table.parts["val"])
        check_finite(table.parts["test"])
    return tables, notes + list(few_shot_notes(tables[0].parts["train"].y, evaluation.fewshot))


def _candidates(search: Search, tables: Sequence[Table], evaluation: Evaluation) -> tuple[list[HeadSpec], list[str]]:
    """Return the candidates of a search, and notes on what is left out."""
    train, val = tables[0].parts["train"], tables[0].parts["val"]
    candidates, skipped = search.candidates(train.y, train.width, len(train if evaluation.folds else val))
    if train.stored is None:
        return candidates, skipped
    linear, left_out = _streaming(candidates)
    return linear, skipped + left_out


def _trials(experiment: Experiment, evaluation: Evaluation) -> list[Trial]:
    """Return the fits to make: each candidate on each table, per seed if it is random, per fold if there are folds."""
    return [
        Trial(table, at, seed, fold)
        for table in range(len(experiment.tables))
        for at, candidate in enumerate(experiment.candidates)
        for seed in (evaluation.each_seed if registry.FAMILIES[candidate.head].random else [evaluation.first_seed])
        for fold in (range(evaluation.folds) if evaluation.folds else [HOLD_OUT])
    ]


@dataclass(frozen=True, eq=False)
class _Entry:
    """A row of the leaderboard, its table and candidate; ``right`` bool (m,): rows that the first seed got right."""

    table: int
    candidate: int
    right: np.ndarray
    row: dict[str, Any]


def _entries(trials: Sequence[Trial], tried: Tried, experiment: Experiment) -> list[_Entry]:
    """Return an entry for each candidate that was tried, in the order of the trials."""
    by_candidate: dict[tuple[int, int], list[Trial]] = {}
    for trial in trials:
        by_candidate.setdefault((trial.table, trial.candidate), []).append(trial)
    entries = []
    for (table, at), some in by_candidate.items():
        error = next((tried.errors[trial] for trial in some if trial in tried.errors), None)
        if error is None and not all(trial in tried.outcomes for trial in some):
            continue  # the budget ended before all of its trials were done
        row = experiment.candidates[at].to_json() | {"val": None, "val_ci": None, "fit_seconds": 0.0}
        if len({one.name for one in experiment.tables}) > 1:
            row["feature_set"] = experiment.tables[table].name
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
    rivals = [entry for entry in ranked[1:] if len(entry.right)]
    p_values = [mcnemar(ranked[0].right, entry.right) for entry in rivals]
    for entry, p_value, corrected in zip(rivals, p_values, holm(p_values), strict=True):
        entry.row.update(p_value=p_value, p_corrected=corrected, tied=corrected >= TIED)
    return ranked


def _winner(board: Sequence[_Entry], prefer: str) -> _Entry:
    """Return the first entry, or if the simple one is preferred, the simplest of those that are tied with it."""
    if prefer == "best":
        return board[0]
    return min((e for e in board if e is board[0] or e.row.get("tied")), key=lambda e: (e.candidate, e.table))


def _with_views(
    best: _Entry, trials: Sequence[Trial], experiment: Experiment, augmented: Dataset
) -> tuple[Experiment, list[_Entry], Tried]:
    """Repeat the best candidate's trials on one more table, which has views; return its entry if the budget allows."""
    table = experiment.tables[best.table].with_views(augmented)
    experiment = replace(experiment, tables=[*experiment.tables, table])
    own = [trial for trial in trials if (trial.table, trial.candidate) == (best.table, best.candidate)]
    again = [replace(trial, table=len(experiment.tables) - 1) for trial in own]
    tried = experiment.run(again)
    entries = _entries(again, tried, experiment)
    for row in (entry.row for entry in entries):
        row["views"] = count_views(table.training, table.parts["train"])
        if row["val"] is not None:
            where = "on validation" if table.groups is None else "over the folds"
            told = gained(row["views"], row["val"], best.row["val"], where)
            row["note"] = "; ".join(filter(None, [row.get("note"), told])) + "."
    return experiment, entries, tried


def _refuse(**options: object) -> None:
    """Raise UsageError if an option is set that needs the training rows in memory."""
    names = {"folds": "--cv", "fewshot": "--fewshot-k", "sets": "several --set"}
    if asked := [names[option] for option, value in options.items() if value]:
        raise UsageError(
            f"{' and '.join(asked)} cannot be had while training features are streamed, as they exceed half of "
            "--memory-limit: raise it, or leave these out."
        )


def _streaming(candidates: Sequence[HeadSpec]) -> tuple[list[HeadSpec], list[str]]:
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


def _head_of(entry: _Entry, tried: Tried, experiment: Experiment, seed: int) -> tuple[Head, float]:
    """Return the winner's head, fitted to all training rows, and its fit's seconds; keep it in the results.

    The head was fitted in this comparison, or is kept from an earlier one, or is fitted now: if folds chose it, or if
    it is too large to be kept.

    Raises:
        HeadError: the head cannot be fitted to all training rows.
    """
    whole, trial = experiment.tables[entry.table].whole(), Trial(0, entry.candidate, seed)
    alone = replace(experiment, tables=[whole], deadline=np.inf)
    key = alone.key(trial)
    if (kept := experiment.results.head(key)) and (outcome := experiment.results.get(key)):
        return kept, outcome.seconds
    if tried.best is None or tried.best[0] != Trial(entry.table, entry.candidate, seed):
        tried = replace(alone, results=Results()).run([trial])
        if tried.best is None:
            raise HeadError(f"The winner could not be fitted to all training rows: {tried.errors[trial]}")
        if experiment.results.get(key) is None:
            experiment.results.put(key, tried.outcomes[trial])
    fitted, head = tried.best
    val = whole.parts["val"]
    head = registry.calibrated(head, val.X, val.y)
    experiment.results.keep(key, head)
    return head, tried.outcomes[fitted].seconds


def _learning_curve(
    experiment: Experiment, images: Table, spec: HeadSpec, seed: int, winner: Head, seconds: float
) -> dict[str, Any] | None:
    """Return the winner's learning curve; None if its rows are streamed, it takes long to fit, or the time is over."""
    if images.training.stored is not None or seconds > CURVE_SECONDS or time.monotonic() > experiment.deadline:
        return None
    return learning_curve(spec, images, seed, experiment, winner)


def _fewshot(
    experiment: Experiment, images: Table, board: Sequence[_Entry], evaluation: Evaluation
) -> list[dict[str, Any]] | None:
    """Score the best candidate of each family on few rows per class; return None if this is not asked for."""
    if not evaluation.fewshot:
        return None
    best: dict[str, HeadSpec] = {}
    for entry in board:
        if entry.row["val"] is not None:
            best.setdefault(entry.row["head"], experiment.candidates[entry.candidate])
    draws = max(MIN_DRAWS, evaluation.seeds)
    return few_shot(list(best.values()), images, evaluation.fewshot, draws, experiment)
