"""Scores of heads that are fitted to fewer training rows: the winner's learning curve, and few rows per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from featurestore.errors import HeadError
from heads import registry
from heads.base import Head
from heads.comparison.subsampling import by_turns
from heads.comparison.tables import Beginnings, Shots, Table
from heads.comparison.trials import Experiment, Trial
from heads.evaluation import learning_curve as learning
from heads.evaluation import metrics
from heads.spec import HeadSpec

CURVE_SHARES = (0.1, 0.18, 0.32, 0.56)  # of the training rows, before all of them


def learning_curve(spec: HeadSpec, whole: Table, seed: int, experiment: Experiment, winner: Head) -> dict[str, Any]:
    """Return a head's validation scores over the number of training rows, and the score to expect at twice all.

    The fits together take about as long as one more fit to all rows. Linear heads share each pass and start from the
    winner.

    Args:
        spec: the head to fit.
        whole: the rows to fit, without folds and views.
        seed: of the fits.
        experiment: its results are used, and its deadline holds.
        winner: the head, as it was fitted to all rows.
    """
    y = whole.training.y
    sizes = [round(share * len(y)) for share in CURVE_SHARES]
    tables = [Beginnings(whole, sizes), whole]
    start = winner if registry.FAMILIES[spec.head].loss else None
    fits = replace(experiment, tables=tables, candidates=[spec], start=start)
    order = by_turns(y, 0)
    enough = [part for part, size in enumerate(sizes) if len(np.unique(y[order[:size]])) > 1]
    trials = [*(Trial(0, 0, seed, part) for part in enough), Trial(1, 0, seed)]
    tried = fits.run(trials)
    points = []
    for trial, n in zip(trials, [*(sizes[part] for part in enough), len(y)], strict=True):
        if trial in tried.outcomes:  # else there were too few rows for these parameters, or the time is over
            right = tried.outcomes[trial].right
            value = float(right.mean())
            points.append({"n": n, "val": value, "val_ci": list(metrics.wilson(value, len(right)))})
    return {"head": spec.head, "params": spec.params, "points": points, "at_twice": learning.expect(points, 2 * len(y))}


def few_shot(
    specs: Sequence[HeadSpec], whole: Table, ks: Sequence[int], draws: int, experiment: Experiment
) -> list[dict[str, Any]]:
    """Score heads that are fitted, without class weights, to k rows per class: a row per k and head.

    Args:
        specs: the heads.
        whole: the rows to draw from, without folds and views.
        ks: numbers of rows per class.
        draws: how many; a row has the mean and the range over them.
        experiment: its results are used; its deadline does not hold.

    Raises:
        HeadError: a head cannot be fitted to so few rows.
    """
    rows = []
    for k in ks:
        heads = [
            HeadSpec(spec.head, {name: min(value, k) if name == "k" else value for name, value in spec.params.items()})
            for spec in specs
        ]
        fits = replace(experiment, tables=[Shots(whole, k)], candidates=heads, deadline=np.inf)
        tried = fits.run([Trial(0, at, draw, draw) for at in range(len(heads)) for draw in range(draws)])
        if tried.errors:
            raise HeadError(f"Few-shot with {k:,} images per class: {next(iter(tried.errors.values()))}")
        for at, spec in enumerate(heads):
            values = [float(tried.outcomes[Trial(0, at, draw, draw)].right.mean()) for draw in range(draws)]
            row = {"k": k, "head": spec.head, "params": spec.params, "val": float(np.mean(values))}
            rows.append(row | {"val_range": [min(values), max(values)]})
    return rows
