"""The geometry of line charts, which the reports' templates draw as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np

from heads.evaluation.learning_curve import PowerLaw
from heads.evaluation.metrics import Curve
from heads.reporting.axes import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Area,
    Points,
    log_plane,
    round_steps,
    share_steps,
    short,
    unit_square,
    whole,
)

SMOOTHING = 0.8  # weight of an epoch relative to the next one's, as in Keras's tutorials
MAX_POINTS = 400  # per curve: more cannot be seen
SMALL_DOT, DOT, LARGEST_DOT = 2.0, 3.5, 8.0  # radius, in SVG units
DOTTED_NIGHTS = 45  # with more, only nights of promotion have a dot, a smaller one
LOW_HEIGHT = 104  # of a chart with a single interval
CROSS, TRIANGLE = "m-2.5 -2.5l5 5m-5 0l5 -5", "m-3.5 3h7l-3.5 -6z"  # below the axis, at nights of block and promotion
PROMOTED, BLOCKED = "promoted", "blocked"  # decisions that are marked
COLOURS = ("first", "second", "third", "fourth")


@dataclass(frozen=True)
class Line:
    """A line: its name in the legend, the CSS classes of its colour, and its SVG path.

    ``raw`` is the path of the unsmoothed values, or of their intervals; ``dots`` are (x, y, radius); ``swatch`` is the
    path in the legend, 22 units by 11.
    """

    name: str
    colour: str
    path: str
    raw: str = ""
    dots: list[tuple[float, float, float]] = field(default_factory=list)
    swatch: str = "M2 6H20"


@dataclass(frozen=True)
class Chart:
    """A chart; ticks are (position in SVG units, text)."""

    title: str
    x_name: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[Line] = field(default_factory=list)
    width: int = WIDTH
    height: int = HEIGHT
    box: tuple[int, int, int, int] = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)


def training_curves(history: Sequence[Mapping[str, float]]) -> list[Chart]:
    """Return smoothed charts of accuracy and of loss over the epochs; none without a history (see ``Head.history``)."""
    if not history:
        return []
    epochs = (1.0, float(max(len(history), 2)))
    charts = []
    for key in ("accuracy", "loss"):
        curves = {
            name: [(epoch["epoch"], epoch[prefix + key]) for epoch in history if prefix + key in epoch]
            for name, prefix in (("training", ""), ("validation", "val_"))
        }
        values = [y for points in curves.values() for _, y in points] or [0.0]
        steps = round_steps(min(values), 1.0) if key == "accuracy" else round_steps(0.0, max(values))
        area = Area(epochs, (steps[0], steps[-1]))
        charts.append(
            Chart(
                key.capitalize(),
                "epoch",
                [(area.x(x), f"{x:g}") for x in whole(round_steps(*epochs), epochs)],
                [(area.y(y), f"{100 * y:.3g}\u202f%" if key == "accuracy" else f"{y:g}") for y in steps],
                [
                    Line(f"{name}, {_last(points, key)}", colour, area.path(_smooth(points)), area.path(points))
                    for (name, points), colour in zip(curves.items(), ("first", "second"), strict=True)
                    if points
                ],
            )
        )
    return charts


def two_class_curves(roc: Curve, precision_recall: Mapping[str, Curve]) -> list[Chart]:
    """Return a chart of a ROC curve with the diagonal of chance, and one of precision over recall, a line per class."""
    area, x_ticks, y_ticks = unit_square()
    chance = Line("chance", "chance", area.path([(0, 0), (1, 1)]))
    return [
        Chart(
            "ROC: true positive rate",
            "false positive rate",
            x_ticks,
            y_ticks,
            [Line(f"AUC {roc.area:.4f}", "first", area.path(_points(roc))), chance],
        ),
        Chart(
            "Precision",
            "recall",
            x_ticks,
            y_ticks,
            [
                Line(f"{name}, average precision {curve.area:.4f}", colour, area.path(_points(curve)))
                for (name, curve), colour in zip(precision_recall.items(), ("first", "second"), strict=True)
            ],
        ),
    ]


def regularisation_path(title: str, paths: Mapping[tuple[str, bool], Points], heads: Sequence[str]) -> Chart:
    """Return a chart of validation accuracy over C.

    Args:
        title: of the chart.
        paths: by family, and whether its classes are weighted ("balanced"), points (C, accuracy) with C ascending.
        heads: the families; each has its own colour, the same in all charts with the same ``heads``.
    """
    x_values, y_values = (np.concatenate([np.array(path)[:, i] for path in paths.values()]) for i in (0, 1))
    area, x_ticks, y_ticks = log_plane((x_values.min(), x_values.max()), (y_values.min(), y_values.max()))
    return Chart(
        title,
        "C",
        x_ticks,
        y_ticks,
        [
            Line(
                f"{head}, balanced" if balanced else head,
                COLOURS[heads.index(head) % len(COLOURS)] + (" dashed" if balanced else ""),
                area.path(points),
                dots=[(area.x(x), area.y(y), DOT) for x, y in points],
            )
            for (head, balanced), points in paths.items()
        ],
    )


def reliability_diagram(calibration: Mapping[str, Any]) -> Chart:
    """Return a chart of accuracy over confidence, before and after the temperature, from ``TrainResult.calibration``.

    The area of a dot shows the number of rows in its bin.
    """
    area, x_ticks, y_ticks = unit_square()
    lines = [Line("as it should be", "chance", area.path([(0, 0), (1, 1)]))]
    temperature = calibration["temperature"]
    for key, name, colour in (
        ("before", "as fitted", "second"),
        ("after", f"at temperature {temperature:.3g}", "first"),
    ):
        bins = calibration[key]
        points = [(row["confidence"], row["accuracy"]) for row in bins]
        largest = max(row["n"] for row in bins)
        radii = [max(LARGEST_DOT * math.sqrt(row["n"] / largest), 1.0) for row in bins]
        dots = [(area.x(x), area.y(y), round(radius, 1)) for (x, y), radius in zip(points, radii, strict=True)]
        error = f"{100 * calibration[f'ece_{key}']:.1f}\u202f%"
        lines.append(Line(f"{name}: ECE {error}", colour, area.path(points), dots=dots))
    return Chart("Accuracy of predictions", "their probability", x_ticks, y_ticks, lines)


def learning_curve(
    points: Sequence[Mapping[str, Any]], law: PowerLaw | None, expected: Mapping[str, Any] | None
) -> Chart:
    """Return a chart of validation accuracy over the number of training images.

    Args:
        points: at least one, each with "n", "val" and "val_ci".
        law: of the errors, drawn up to the number of images of ``expected``.
        expected: see ``heads.evaluation.learning_curve.expect``.
    """
    ends = [point["n"] for point in points] + ([expected["n"]] if expected else [])
    reach = [share for point in points for share in point["val_ci"]]
    reach += [expected["low"], expected["high"]] if expected else []
    area, x_ticks, y_ticks = log_plane((min(ends), max(ends)), (min(reach), max(reach)))
    dots = [(area.x(point["n"]), area.y(point["val"]), DOT) for point in points]
    lines = [
        Line(
            "measured",
            "first",
            "" if law else area.path([(point["n"], point["val"]) for point in points]),
            "".join(area.interval(point["n"], *point["val_ci"]) for point in points),
            dots,
        )
    ]
    if law and expected:
        curve = [(n, 1 - float(law.error(n))) for n in np.geomspace(min(ends), max(ends), 60).tolist()]
        lines.append(
            Line(
                f"expected: {100 * expected['val']:.1f}\u202f% at {expected['n']:,} images",
                "second dashed",
                area.path(curve),
                area.interval(expected["n"], expected["low"], expected["high"]),
                [(area.x(expected["n"]), area.y(expected["val"]), DOT)],
            )
        )
    return Chart("Validation", "training images", x_ticks, y_ticks, lines)


@dataclass(frozen=True)
class Night:
    """A night of a scheduled retrain.

    Attributes:
        date: the logical date.
        decision: what came of it, such as "promoted" or "blocked".
        score: of the head in use after it, a share; None if nothing was scored.
        ci: interval of the score.
        images: number of training images; None if not known.
    """

    date: date
    decision: str
    score: float | None = None
    ci: tuple[float, float] | None = None
    images: int | None = None

    @property
    def day(self) -> float:
        """The date as a number of days."""
        return float(self.date.toordinal())


def scores_over_nights(nights: Sequence[Night], metric: str) -> Chart:
    """Return a chart of the score of the head in use, a line per champion, with nights of promotion and block marked.

    Args:
        nights: in the order of their dates, at least one with a score.
        metric: what the scores are, in words.
    """
    scored = [(night, night.score) for night in nights if night.score is not None]
    promoted = [(night, score) for night, score in scored if night.decision == PROMOTED]
    intervals = [(night.day, *night.ci) for night, _ in scored if night.ci]
    reach = [score for _, score in scored] + [end for _, *ci in intervals for end in ci]
    steps = share_steps(min(reach), max(reach))
    area = Area(_days(nights), (steps[0], steps[-1]))
    blocked = [night for night in nights if night.decision == BLOCKED]
    few = len(scored) <= DOTTED_NIGHTS
    lines = [
        Line(
            "champion, with 95\u202f% interval",
            "first",
            "".join(area.path([(night.day, score) for night, score in reign]) for reign in _reigns(scored)),
            "".join(area.interval(*interval) for interval in intervals),
            [(area.x(night.day), area.y(score), DOT) for night, score in scored if few],
        ),
        Line(
            "a new champion",
            "mark",
            "".join(area.below(night.day, TRIANGLE) for night, _ in promoted),
            dots=[(area.x(night.day), area.y(score), DOT if few else SMALL_DOT) for night, score in promoted],
            swatch=f"M11 6{TRIANGLE}",
        ),
        Line("blocked", "second", "".join(area.below(night.day, CROSS) for night in blocked), swatch=f"M11 6{CROSS}"),
    ]
    return Chart(
        f"Champion: {metric}",
        "night",
        area.dates(),
        [(area.y(y), f"{100 * y:.3g}\u202f%") for y in steps],
        [line for line in lines if line.path],
    )


def images_over_nights(nights: Sequence[Night]) -> Chart:
    """Return a chart of the number of training images.

    Args:
        nights: in the order of their dates, at least one with images.
    """
    points = [(night.day, float(night.images)) for night in nights if night.images is not None]
    steps = round_steps(0.0, max(max(y for _, y in points), 1))
    area = Area(_days(nights), (0.0, steps[-1]))
    dots = [(area.x(x), area.y(y), DOT) for x, y in points if len(points) <= DOTTED_NIGHTS]
    return Chart(
        "Data: training images",
        "night",
        area.dates(),
        [(area.y(y), short(y)) for y in whole(steps, (0.0, steps[-1]))],
        [Line(f"{points[-1][1]:,.0f} images on the last night", "third", area.path(points), dots=dots)],
    )


def difference(value: float, ci: Sequence[float], threshold: float, step: float | None = None) -> Chart:
    """Return a chart of challenger minus champion with its interval, and of where the whole interval must lie.

    Args:
        value: the difference of two shares.
        ci: its interval.
        threshold: where the interval must lie above, a difference too.
        step: what the difference itself must exceed, if anything.
    """
    low, high = (end(*ci, 0.0, threshold, step or 0.0) for end in (min, max))
    room = max(0.06 * (high - low), 0.0025)
    steps = round_steps(low - room, high + room)
    area = Area((steps[0], steps[-1]), (0.0, 1.0), height=LOW_HEIGHT)
    start, end, middle = area.x(threshold), area.x(steps[-1]), area.y(0.5)
    interval = "M{:g} {y:g}v12m0 -6H{:g}m0 -6v12".format(*map(area.x, ci), y=middle - 6)
    return Chart(
        "Challenger − champion",
        "percentage points",
        [(area.x(x), f"{100 * x:+g}".replace("-", "−") if x else "0") for x in steps],
        [],
        [
            Line("where the whole interval must lie", "zone", f"M{start:g} {middle:g}H{end:g}"),
            Line("no difference", "zero", area.interval(0.0, 0.0, 1.0)),
            *([] if step is None else [Line("step to exceed", "second dashed", area.interval(step, 0.0, 1.0))]),
            Line("tonight, with 95\u202f% interval", "first", interval, dots=[(area.x(value), middle, 5.0)]),
        ],
        height=LOW_HEIGHT,
        box=(LEFT, TOP, WIDTH - RIGHT, LOW_HEIGHT - BOTTOM),
    )


def _smooth(points: Points) -> Points:
    """Return exponentially weighted means of the values so far, not biased to the first one, as TensorBoard does."""
    total = weight = 0.0
    smoothed = []
    for x, y in points:
        total, weight = SMOOTHING * total + y, SMOOTHING * weight + 1
        smoothed.append((x, total / weight))
    return smoothed


def _points(curve: Curve) -> Points:
    """Return the points of a curve, thinned out evenly to at most ``MAX_POINTS``."""
    kept = np.unique(np.linspace(0, len(curve.x) - 1, MAX_POINTS).astype(int))
    return list(zip(curve.x[kept].tolist(), curve.y[kept].tolist(), strict=True))


def _last(points: Points, key: str) -> str:
    value = points[-1][1] if points else math.nan
    return f"{100 * value:.1f}\u202f% in the last epoch" if key == "accuracy" else f"{value:.3g} in the last epoch"


def _reigns(scored: Sequence[tuple[Night, float]]) -> list[Sequence[tuple[Night, float]]]:
    """Return the nights of each champion, with its scores."""
    starts = [i for i, (night, _) in enumerate(scored) if i == 0 or night.decision == PROMOTED]
    return [scored[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]


def _days(nights: Sequence[Night]) -> tuple[float, float]:
    """Return the range of days of a chart, with room on either side."""
    first, last = nights[0].day, nights[-1].day
    room = max(0.03 * (last - first), 0.5)
    return first - room, last + room
