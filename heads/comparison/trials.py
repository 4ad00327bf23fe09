"""The fits of a comparison: linear families and kernel machines in sweeps, nets together, others in parallel."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from featurestore.machine import available_cores
from heads import registry
from heads.base import Head, Problem
from heads.comparison.fit_cache import Outcome, Results, key_of
from heads.comparison.tables import HOLD_OUT, Table
from heads.families.linear import LinearProblem, fit_many
from heads.solvers.kernels import Kernel
from heads.solvers.sweep import LabelledRows
from heads.spec import HeadSpec
from heads.train import timed_fit

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Trial:
    """One fit of one candidate: the numbers of its table and candidate, its seed, and the part of the table."""

    table: int
    candidate: int
    seed: int
    part: int = HOLD_OUT


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
        start: a head of a linear family that is close to those that are fitted.
    """

    tables: Sequence[Table]
    candidates: Sequence[HeadSpec]
    results: Results = field(default_factory=Results)
    deadline: float = np.inf
    start: Head | None = None

    def run(self, trials: Sequence[Trial], progress: Progress | None = None) -> Tried:
        """Run the trials that ``results`` does not know, and store each outcome there as soon as it is known.

        ``progress`` is called in this thread with (done, total).
        """
        tried = Tried()
        keys = {trial: self.key(trial) for trial in trials}
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

    def key(self, trial: Trial) -> str:
        """Return the key of a trial's outcome, and of its head."""
        candidate = self.candidates[trial.candidate]
        family = registry.FAMILIES[candidate.head]
        fit = candidate.to_json() | {"seed": trial.seed if family.random else 0, "fold": trial.part}
        if family.version > 1:
            fit["family_version"] = family.version
        return key_of(self.tables[trial.table].digest, **fit)

    def _fits(self, trials: Sequence[Trial]) -> Iterator[Made]:
        sweeps: dict[tuple[int, Kernel | None], dict[str, list[Trial]]] = {}
        together: dict[str, list[Trial]] = defaultdict(list)
        others = []
        for trial in trials:
            name = self.candidates[trial.candidate].head
            if registry.FAMILIES[name].loss and self.tables[trial.table].shares_passes:
                sweeps.setdefault((trial.table, self._kernel(trial)), {}).setdefault(name, []).append(trial)
            elif registry.FAMILIES[name].fit_many:
                together[name].append(trial)
            else:
                others.append(trial)
        for some in (some for families in sweeps.values() for some in families.values()):
            yield from _guarded(self._sweep, some)
        for some in together.values():
            yield from _guarded(self._together, some)
        yield from self._side_by_side(others)

    def _kernel(self, trial: Trial) -> Kernel | None:
        candidate = self.candidates[trial.candidate]
        kernel = registry.FAMILIES[candidate.head].kernel
        return None if kernel is None else kernel(**candidate.params)

    def _sweep(self, trials: Sequence[Trial]) -> Iterator[Made]:
        """Fit trials of one linear family, kernel and table; all of them share each pass over the rows."""
        table, specs = self.tables[trials[0].table], [self.candidates[trial.candidate] for trial in trials]
        family, groups = registry.FAMILIES[specs[0].head], table.groups
        assert family.loss is not None and family.C is not None
        prepared = table.rows(self._kernel(trials[0]))
        classes, y = np.unique(table.training.y, return_inverse=True)
        scored = {trial.part: table.scored(trial.part) for trial in trials}
        order = prepared.order
        data = LabelledRows(prepared.rows, y[order], len(classes), None if groups is None else groups[order])
        problems = [
            LinearProblem(family.C(**spec.params), spec.class_weight, table.left_out(trial.part))
            for trial, spec in zip(trials, specs, strict=True)
        ]
        for fit in fit_many(data, family.loss, problems, prepared.start(self.start)):
            trial, spec = trials[fit.problem], specs[fit.problem]
            head = family.head(spec.head, dict(spec.params), classes, prepared.arrays(fit.coef, fit.intercept))
            part = scored[trial.part]
            note = "" if fit.converged else f"not solved within {fit.passes} passes"
            yield trial, Outcome(head.predict(part.X) == part.y, fit.seconds, note), head if groups is None else None
            if time.monotonic() > self.deadline:
                return

    def _together(self, trials: Sequence[Trial]) -> Iterator[Made]:
        """Fit trials of one family that fits many side by side; none has a copy of the features."""
        family = registry.FAMILIES[self.candidates[trials[0].candidate].head]
        assert family.fit_many is not None
        shared = cache(lambda table, part: self.tables[table].shared(part))
        begun: list[tuple[Trial, list[dict[str, float]]]] = []
        failed: list[Made] = []

        def problems() -> Iterator[tuple[Problem, Mapping[str, Any]]]:
            for trial in reversed(trials):  # the longest first
                if time.monotonic() > self.deadline:
                    return
                try:
                    _, problem = shared(trial.table, trial.part)
                except Exception as error:  # a part without rows to fit must not cost the others
                    failed.append((trial, _told(error), None))
                    continue
                spec, history = self.candidates[trial.candidate], list[dict[str, float]]()
                begun.append((trial, history))
                weight, seed = spec.class_weight, trial.seed
                yield replace(problem, class_weight=weight, seed=seed, on_epoch=history.append), spec.params

        for fit in family.fit_many(problems()):
            trial, history = begun[fit.problem]
            if fit.error is not None:
                yield trial, _told(fit.error), None
                continue
            table, spec = self.tables[trial.table], self.candidates[trial.candidate]
            classes, problem = shared(trial.table, trial.part)
            arrays = {"mean": problem.mean, "scale": problem.scale, "temperature": np.asarray(1.0), **fit.arrays}
            head = family.head(spec.head, dict(spec.params), classes, arrays, tuple(history))
            scored = table.scored(trial.part)
            outcome = Outcome(head.predict(scored.X) == scored.y, fit.seconds)
            yield trial, outcome, head if table.groups is None else None
        yield from failed

    def _side_by_side(self, trials: Sequence[Trial]) -> Iterator[Made]:
        """Fit the families that cannot share passes, a few trials at a time."""

        def fit(trial: Trial) -> Made | None:
            if time.monotonic() > self.deadline:
                return None
            table = self.tables[trial.table]
            scored = table.scored(trial.part)
            try:
                head, seconds = timed_fit(
                    self.candidates[trial.candidate], table.fitted(trial.part), scored, trial.seed
                )
            except Exception as error:  # one failed candidate must not cost the others
                return trial, _told(error), None
            outcome = Outcome(head.predict(scored.X) == scored.y, seconds)
            return trial, outcome, head if table.groups is None else None

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


def _guarded(way: Callable[[Sequence[Trial]], Iterator[Made]], trials: Sequence[Trial]) -> Iterator[Made]:
    """Fit trials of one family; if it fails, those that are left have its error: it must not cost other families."""
    left = dict.fromkeys(trials)
    try:
        for made in way(trials):
            del left[made[0]]
            yield made
    except Exception as error:
        yield from ((trial, _told(error), None) for trial in left)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
