"""The geometry of line charts, which the report's template draws as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from heads.evaluation.learning_curve import PowerLaw
from heads.evaluation.metrics import Curve

WIDTH, HEIGHT = 440, 260  # of a chart, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 52, 26, 10, 40  # margins, for tick labels and axis names
SMOOTHING = 0.8  # weight of an epoch relative to the next one's, as in Keras's tutorials
MAX_POINTS = 400  # per curve: more cannot be seen
DOT, LARGEST_DOT = 3.5, 8.0  # radius, in SVG units
COLOURS = ("first", "second", "third", "fourth")

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A line: its name in the legend, the CSS classes of its colour, and its SVG path.

    ``raw`` is the path of the unsmoothed values, or of their intervals; ``dots`` are (x, y, radius).
    """

    name: str
    colour: str
    path: str
    raw: str = ""
    dots: list[tuple[float, float, float]] = field(default_factory=list)


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
    """Return a chart of a ROC curve with the diagonal of chance, and one of precision over recall, a line per class."""
    area, x_ticks, y_ticks = _unit_square()
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
    area, x_ticks, y_ticks = _log_plane((x_values.min(), x_values.max()), (y_values.min(), y_values.max()))
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
    area, x_ticks, y_ticks = _unit_square()
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
    area, x_ticks, y_ticks = _log_plane((min(ends), max(ends)), (min(reach), max(reach)))
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
class _Area:
    """The plane inside a chart's axes; ``log`` makes only x logarithmic."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log: bool = False

    def x(self, value: float) -> float:
        low, high = self.x_range
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    def path(self, points: Points) -> str:
        """Return the SVG path through the points; round line caps make a single point a dot."""
        return "M" + "L".join(f"{self.x(x):g} {self.y(y):g}" for x, y in points) + "h.001"

    def interval(self, x: float, low: float, high: float) -> str:
        """Return the SVG path of a vertical line."""
        return f"M{self.x(x):g} {self.y(low):g}V{self.y(high):g}"


Ticks = list[tuple[float, str]]


def _unit_square() -> tuple[_Area, Ticks, Ticks]:
    """Return an area with both axes from 0 to 100 %, and their ticks."""
    area, steps = _Area((0.0, 1.0), (0.0, 1.0)), [0, 0.25, 0.5, 0.75, 1]
    names = [f"{100 * step:g}\u202f%" for step in steps]
    return (
        area,
        [(area.x(step), name) for step, name in zip(steps, names, strict=True)],
        [(area.y(step), name) for step, name in zip(steps, names, strict=True)],
    )


def _log_plane(x_range: tuple[float, float], shares: tuple[float, float]) -> tuple[_Area, Ticks, Ticks]:
    """Return an area with shares over a logarithmic x, and its ticks; a narrow range of shares is widened."""
    low = max(0.0, min(shares[0], shares[1] - 0.02))
    steps = _steps(low, max(shares[1], low + 0.02))
    room = (x_range[1] / x_range[0]) ** 0.04 if x_range[1] > x_range[0] else 2
    area = _Area((x_range[0] / room, x_range[1] * room), (steps[0], steps[-1]), log=True)
    x_ticks = [(area.x(x), _short(x)) for x in _magnitudes(*area.x_range)]
    return area, x_ticks, [(area.y(y), f"{100 * y:.3g}\u202f%") for y in steps]


def _magnitudes(low: float, high: float, most: int = 8) -> list[float]:
    """Return at most ``most`` round numbers in a range: 1, 2 and 5 times powers of ten, or all powers, or some."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices = [[digit * 10.0**power for power in powers for digit in (1, 2, 5)]]
    choices += [[10.0**power for power in powers if power % step == 0] for step in range(1, len(powers) + 1)]
    inside = [[x for x in choice if low <= x <= high] for choice in choices]
    return next(choice for choice in inside if len(choice) <= most)


def _short(value: float) -> str:
    """Return a round number as short text: 0.01, 500, 20k, 1e-5."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}" if value >= 0.001 else f"{value:.0e}".replace("e-0", "e-")


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


def _steps(low: float, high: float, about: int = 5) -> list[float]:
    """Return evenly spaced round numbers from at most ``low`` to at least ``high``."""
    rough = max(high - low, 1e-9) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def _whole(steps: Sequence[float], limits: tuple[float, float]) -> list[float]:
    return [step for step in steps if step == int(step) and limits[0] <= step <= limits[1]]
