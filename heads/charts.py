"""Line charts as plain geometry, for the report's template to draw as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from heads.evaluate import Curve

WIDTH, HEIGHT = 440, 260  # of a chart, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 52, 26, 10, 40  # margins, for ticks and names
SMOOTHING = 0.8  # weight of an epoch beside the next one's, as in Keras's tutorials
MAX_POINTS = 400  # of a curve: more cannot be seen

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A line: what the legend says, its colour's CSS class, its SVG path, and that of the values as measured."""

    name: str
    colour: str
    path: str
    raw: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart; ticks are (place in SVG units, text)."""

    title: str
    x_name: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[Line] = field(default_factory=list)
    width: int = WIDTH
    height: int = HEIGHT
    box: tuple[int, int, int, int] = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)


def training_curves(history: Sequence[Mapping[str, float]]) -> list[Chart]:
    """Charts of accuracy and of loss over the epochs, smoothed; none without a history (see ``Head.history``)."""
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
        steps = _steps(min(values), 1.0) if key == "accuracy" else _steps(0.0, max(values))
        area = _Area(epochs, (steps[0], steps[-1]))
        charts.append(
            Chart(
                key.capitalize(),
                "epoch",
                [(area.x(x), f"{x:g}") for x in _whole(_steps(*epochs), epochs)],
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
    """Charts of a ROC curve beside the diagonal of chance, and of precision over recall, a line a class."""
    area = _Area((0.0, 1.0), (0.0, 1.0))
    steps = [0, 0.25, 0.5, 0.75, 1]
    x_ticks = [(area.x(x), f"{100 * x:g}\u202f%") for x in steps]
    y_ticks = [(area.y(y), f"{100 * y:g}\u202f%") for y in steps]
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


@dataclass(frozen=True)
class _Area:
    """The plane inside a chart's axes."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    def path(self, points: Points) -> str:
        """The SVG path through the points; a single one is drawn as a dot by a round cap."""
        return "M" + "L".join(f"{self.x(x):g} {self.y(y):g}" for x, y in points) + "h.001"


def _smooth(points: Points) -> Points:
    """Exponentially weighted mean of the values so far, as TensorBoard smooths: the first one weighs no more."""
    total = weight = 0.0
    smoothed = []
    for x, y in points:
        total, weight = SMOOTHING * total + y, SMOOTHING * weight + 1
        smoothed.append((x, total / weight))
    return smoothed


def _points(curve: Curve) -> Points:
    """Points of a curve, evenly thinned out where they are too many to be seen."""
    kept = np.unique(np.linspace(0, len(curve.x) - 1, MAX_POINTS).astype(int))
    return list(zip(curve.x[kept].tolist(), curve.y[kept].tolist(), strict=True))


def _last(points: Points, key: str) -> str:
    value = points[-1][1] if points else math.nan
    return f"{100 * value:.1f}\u202f% in the last epoch" if key == "accuracy" else f"{value:.3g} in the last epoch"


def _steps(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers, evenly spaced, from at most ``low`` to at least ``high``."""
    rough = max(high - low, 1e-9) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def _whole(steps: Sequence[float], limits: tuple[float, float]) -> list[float]:
    return [step for step in steps if step == int(step) and limits[0] <= step <= limits[1]]
