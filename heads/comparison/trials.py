"""The fits of a comparison: linear families in sweeps, others in parallel; known outcomes are not fitted again."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

import numpy as np
from threadpoolctl import threadpool_limits

from featurestore.dataset import Dataset
from featurestore.machine import available_cores
from heads import registry
from heads.base import Head, standardisation
from heads.comparison.fit_cache import Outcome, Results, digest, key_of
from heads.comparison.streaming import streamed_rows
from heads.families.linear import LinearProblem, fit_many
from heads.solvers.rows import MemoryRows, Rows
from heads.solvers.sweep import LabelledRows
from heads.spec import HeadSpec
from heads.train import timed_fit

HOLD_OUT = -1  # the fold of trials that are scored on the validation split

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Trial:
    """One fit of one candidate: the numbers of its table and candidate, its seed, and the fold it is scored on."""

    table: int
    candidate: int
    seed: int
    fold: int


class Table:
    """The rows of one feature set: per fold, those that are fitted and those that are scored.

    Attributes:
        parts: the splits.
        name: of the feature set.
        training: the rows to fit: the training rows, then their views if there are any.
        folds: the fold of each row of ``training``, int (n,); a view has its image's. None if validation is scored.
        digest: of all that decides an outcome, except the candidate, the seed and the fold.
    """

    def __init__(self, parts: dict[str, Dataset], folds: int, augmented: Dataset | None = None) -> None:
        """``folds``: how many train is cut into; 0 for none. ``augmented``: the training rows, then their views."""
        train, val = parts["train"], parts["val"]
        self._number_of_folds = folds
        self.parts, self.name = parts, train.feature_set
        self.training = train if augmented is None else augmented
        self.folds = self.training.folds(folds) if folds else None
        columns = [(part.keys, part.y) for part in ((train,) if folds else (train, val))]
        more: list[np.ndarray | str] = [] if self.folds is None else [self.folds[: len(train)].astype(str)]
        if augmented is not None:
            views = augmented.X[len(train) :]
            more += [augmented.keys[len(train) :], hashlib.sha256(np.ascontiguousarray(views).data).hexdigest()]
        self._rows: tuple[Rows, np.ndarray] | None = None
        self.digest = digest(train.fingerprint, *(column for pair in columns for column in pair), *more)

    def with_views(self, augmented: Dataset) -> Table:
        """Return the same splits and folds as a table that is fitted on ``augmented``."""
        return Table(self.parts, self._number_of_folds, augmented)

    def rows(self) -> tuple[Rows, np.ndarray]:
        """Return ``training`` for sweeps, and its rows' order there, int (n,): by fold or by place in the store."""
        if self._rows is None:
            training = self.training
            if training.stored is not None:
                self._rows = streamed_rows(training), training.stored.order
            else:
                order = np.arange(len(training)) if self.folds is None else np.argsort(self.folds, kind="stable")
                self._rows = MemoryRows(training.X[order], *standardisation(training.X)), order
        return self._rows

    def fitted(self, fold: int) -> Dataset:
        """Return the rows that trials of a fold are fitted to."""
        return self.training if self.folds is None else self.training.take(self.folds != fold)

    def judged(self, fold: int) -> Dataset:
        """Return the rows that trials of a fold are scored on: images, never views."""
        train = self.parts["train"]
        return self.parts["val"] if self.folds is None else train.take(self.folds[: len(train)] == fold)


@dataclass
class Tried:
    """The outcomes and errors of trials. ``best`` is the best-scoring trial that was fitted here and kept its head."""

    outcomes: dict[Trial, Outcome] = field(default_factory=dict)
    errors: dict[Trial, str] = field(default_factory=dict)
    best: tuple[Trial, Head] | None = None

    def add(self, trial: Trial, outcome: Outcome, head: Head | None = None) -> None:
        """Record an outcome; keep its head if it is the best, or equal to the best and of an earlier candidate."""
        self.outcomes[trial] = outcome
        if head is None:
            return
        if self.best is None or self._rank(trial) > self._rank(self.best[0]):
            self.best = trial, head

    def _rank(self, trial: Trial) -> tuple[float, int, int]:
        return float(self.outcomes[trial].right.mean()), -trial.table, -trial.candidate


Made = tuple[Trial, Outcome | str, Head | None]


@dataclass(frozen=True)
class Experiment:
    """What the numbers in trials stand for, and what limits their fits.

    Attributes:
        tables, candidates: looked up by the numbers in the trials.
        results: known outcomes.
        deadline: in seconds of ``time.monotonic``; no fit begins after it.
    """

    tables: Sequence[Table]
    candidates: Sequence[HeadSpec]
    results: Results = field(default_factory=Results)
    deadline: float = np.inf

    def run(self, trials: Sequence[Trial], progress: Progress | None = None) -> Tried:
        """Run the trials that ``results`` does not know, and store each outcome there as soon as it is known.

        ``progress`` is called in this thread with (done, total).
        """
        tried = Tried()
        keys = {trial: self._key(trial) for trial in trials}
        for trial, key in keys.items():
            if (known := self.results.get(key)) is not None:
                tried.outcomes[trial] = known
        left = [trial for trial in trials if trial not in tried.outcomes]
        for trial, made, head in self._fits(left):
            if isinstance(made, Outcome):
                self.results.put(keys[trial], made)
                tried.add(trial, made, head)
            else:
                tried.errors[trial] = made
            if progress:
                progress(len(tried.outcomes) + len(tried.errors), len(trials))
        return tried

    def _key(self, trial: Trial) -> str:
        candidate = self.candidates[trial.candidate]
        seed = trial.seed if registry.FAMILIES[candidate.head].random else 0
        return key_of(self.tables[trial.table].digest, **candidate.to_json(), seed=seed, fold=trial.fold)

    def _fits(self, trials: Sequence[Trial]) -> Iterator[Made]:
        sweeps: dict[tuple[int, str], list[Trial]] = defaultdict(list)
        others = []
        for trial in trials:
            name = self.candidates[trial.candidate].head
            if registry.FAMILIES[name].loss:
                sweeps[trial.table, name].append(trial)
            else:
                others.append(trial)
        for some in sweeps.values():
            left = dict.fromkeys(some)
            try:
                for made in self._sweep(some):
                    del left[made[0]]
                    yield made
            except Exception as error:  # one family that fails must not cost the others
                yield from ((trial, f"{type(error).__name__}: {error}", None) for trial in left)
        yield from self._side_by_side(others)

    def _sweep(self, trials: Sequence[Trial]) -> Iterator[Made]:
        """Fit trials of one linear family and one table; all of them share each pass over the rows.

        The mean and the scale of features come from all training rows, even with folds. The left-out fold contributes
        to both, but they do not depend on its labels.
        """
        table, specs = self.tables[trials[0].table], [self.candidates[trial.candidate] for trial in trials]
        family, folds = registry.FAMILIES[specs[0].head], table.folds
        assert family.loss is not None and family.C is not None
        rows, order = table.rows()
        classes, y = np.unique(table.training.y, return_inverse=True)
        judged = {trial.fold: table.judged(trial.fold) for trial in trials}
        data = LabelledRows(rows, y[order], len(classes), None if folds is None else folds[order])
        problems = [
            LinearProblem(family.C(**spec.params), spec.class_weight, trial.fold)
            for trial, spec in zip(trials, specs, strict=True)
        ]
        for fit in fit_many(data, family.loss, problems):
            trial, spec = trials[fit.problem], specs[fit.problem]
            arrays: dict[str, np.ndarray] = {
                "mean": rows.basis.mean,
                "scale": rows.basis.scale,
                "temperature": np.asarray(1.0),
                "coef": fit.coef,
                "intercept": fit.intercept,
            }
            head = family.head(spec.head, dict(spec.params), classes, arrays)
            part = judged[trial.fold]
            note = "" if fit.converged else f"not solved within {fit.passes} passes"
            yield trial, Outcome(head.predict(part.X) == part.y, fit.seconds, note), head if folds is None else None
            if time.monotonic() > self.deadline:
                return

    def _side_by_side(self, trials: Sequence[Trial]) -> Iterator[Made]:
        """Fit the families that cannot share passes, a few trials at a time."""

        def fit(trial: Trial) -> Made | None:
            if time.monotonic() > self.deadline:
                return None
            table = self.tables[trial.table]
            judged = table.judged(trial.fold)
            try:
                head, seconds = timed_fit(
                    self.candidates[trial.candidate], table.fitted(trial.fold), judged, trial.seed
                )
            except Exception as error:  # one failed candidate must not cost the others
                return trial, f"{type(error).__name__}: {error}", None
            outcome = Outcome(head.predict(judged.X) == judged.y, seconds)
            return trial, outcome, head if table.folds is None else None

        cores = available_cores()
        workers = min(cores, 4)
        with threadpool_limits(cores // workers), ThreadPoolExecutor(workers) as pool:
            futures = {pool.submit(fit, trial) for trial in reversed(trials)}  # the longest first
            try:
                for future in as_completed(list(futures)):
                    futures.discard(future)
                    if (made := future.result()) is not None:
                        yield made
                    del future, made  # a head may hold the training rows
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
