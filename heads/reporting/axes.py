"""The plane inside a chart's axes, and round numbers and dates for their ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

WIDTH, HEIGHT = 440, 260  # of a chart, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 52, 26, 10, 40  # margins, for tick labels and axis names
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

Points = Sequence[tuple[float, float]]
Ticks = list[tuple[float, str]]  # (position in SVG units, text)


@dataclass(frozen=True)
class Area:
    """The plane inside a chart's axes; ``log`` makes only x logarithmic, ``height`` is the chart's."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log: bool = False
    height: int = HEIGHT

    def x(self, value: float) -> float:
        """Return where a value is, in SVG units from the left."""
        low, high = self.x_range
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Return where a value is, in SVG units from the top."""
        low, high = self.y_range
        return round(self.height - BOTTOM - (value - low) / (high - low) * (self.height - TOP - BOTTOM), 1)

    def path(self, points: Points) -> str:
        """Return the SVG path through the points; round line caps make a single point a dot."""
        return "M" + "L".join(f"{self.x(x):g} {self.y(y):g}" for x, y in points) + "h.001"

    def interval(self, x: float, low: float, high: float) -> str:
        """Return the SVG path of a vertical line."""
        return f"M{self.x(x):g} {self.y(low):g}V{self.y(high):g}"

    def below(self, x: float, mark: str) -> str:
        """Return the SVG path of a mark, drawn by relative moves, between the axis of x and its ticks."""
        return f"M{self.x(x):g} {self.height - BOTTOM + 5}{mark}"

    def dates(self) -> Ticks:
        """Return ticks at round dates, where x is the day."""
        first, last = math.ceil(self.x_range[0]), math.floor(self.x_range[1])
        return [(self.x(day), text) for day, text in round_dates(first, last)]


def unit_square() -> tuple[Area, Ticks, Ticks]:
    """Return an area with both axes from 0 to 100 %, and their ticks."""
    area, steps = Area((0.0, 1.0), (0.0, 1.0)), [0, 0.25, 0.5, 0.75, 1]
    names = [f"{100 * step:g}\u202f%" for step in steps]
    return (
        area,
        [(area.x(step), name) for step, name in zip(steps, names, strict=True)],
        [(area.y(step), name) for step, name in zip(steps, names, strict=True)],
    )


def log_plane(x_range: tuple[float, float], shares: tuple[float, float]) -> tuple[Area, Ticks, Ticks]:
    """Return an area with shares over a logarithmic x, and its ticks; a narrow range of shares is widened."""
    steps = share_steps(*shares)
    room = (x_range[1] / x_range[0]) ** 0.04 if x_range[1] > x_range[0] else 2
    area = Area((x_range[0] / room, x_range[1] * room), (steps[0], steps[-1]), log=True)
    x_ticks = [(area.x(x), short(x)) for x in magnitudes(*area.x_range)]
    return area, x_ticks, [(area.y(y), f"{100 * y:.3g}\u202f%") for y in steps]


def share_steps(low: float, high: float) -> list[float]:
    """Return steps for shares; a narrow range is widened to 2 %."""
    low = max(0.0, min(low, high - 0.02))
    return round_steps(low, max(high, low + 0.02))


def round_dates(first: int, last: int, most: int = 6) -> list[tuple[int, str]]:
    """Return at most ``most`` days with their names: each nth day up to two weeks, or the first of each nth month."""
    for step in (1, 2, 7, 14):
        if (last - first) // step < most:
            days = [date.fromordinal(day) for day in range(first, last + 1, step)]
            return [(day.toordinal(), f"{day.day} {MONTHS[day.month - 1]}") for day in days]
    months = range(*(12 * day.year + day.month - 1 for day in map(date.fromordinal, (first, last))))
    step = next(step for step in (1, 2, 3, 6, 12, 24, 60, 120, 1200, 12000) if len(months) // step < most)
    starts = [date(month // 12, month % 12 + 1, 1) for month in (m + 1 for m in months) if month % step == 0]
    names = [f"{day.year}" if day.month == 1 else MONTHS[day.month - 1] for day in starts]
    return [(day.toordinal(), name) for day, name in zip(starts, names, strict=True)]


def magnitudes(low: float, high: float, most: int = 8) -> list[float]:
    """Return at most ``most`` round numbers in a range: 1, 2 and 5 times powers of ten, or all powers, or some."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices = [[digit * 10.0**power for power in powers for digit in (1, 2, 5)]]
    choices += [[10.0**power for power in powers if power % step == 0] for step in range(1, len(powers) + 1)]
    inside = [[x for x in choice if low <= x <= high] for choice in choices]
    return next(choice for choice in inside if len(choice) <= most)


def short(value: float) -> str:
    """Return a round number as short text: 0, 0.01, 500, 20k, 1e-5."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}" if value >= 0.001 or not value else f"{value:.0e}".replace("e-0", "e-")


def round_steps(low: float, high: float, about: int = 5) -> list[float]:
    """Return evenly spaced round numbers from at most ``low`` to at least ``high``."""
    rough = max(high - low, 1e-9) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def whole(steps: Sequence[float], limits: tuple[float, float]) -> list[float]:
    """Return the steps that are whole numbers within the limits."""
    return [step for step in steps if step == int(step) and limits[0] <= step <= limits[1]]
