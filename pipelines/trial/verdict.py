"""What a trial's intervals say of each rival, and in one sentence what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.options import size_text

if TYPE_CHECKING:
    from heads.evaluation.difference import Interval

CONFIDENCE = 0.95  # that no interval of a whole trial misses its difference
BETTER, WORSE, TIED, UNDECIDED = "better", "worse", "tied", "undecided"


def confidence_of(looks: int, rivals: int) -> float:
    """Return the confidence of each interval of a trial with so many planned looks and rivals.

    Who looks several times and stops when it pleases is wrong more often than each interval says. Bonferroni's
    inequality bounds that, whatever depends on what: of m intervals, each of which misses with a chance of at most
    α / m, one misses with a chance of at most α (Dunn 1961, "Multiple comparisons among means", Journal of the American
    Statistical Association 56:52-64). m counts every look that is planned, even if the trial ends before.

    Example:
        >>> round(confidence_of(looks=3, rivals=2), 5)
        0.99167
    """
    return 1 - (1 - CONFIDENCE) / (looks * rivals)


def verdict(interval: Interval, margin: float) -> str:
    """Return what an interval of a gain decides.

    TIED if it lies within ``margin`` of 0 on both sides, else BETTER or WORSE if it is beside 0, else UNDECIDED.
    """
    low, high = interval
    if -margin <= low and high <= margin:
        return TIED
    return BETTER if low > 0 else WORSE if high < 0 else UNDECIDED


@dataclass(frozen=True)
class Rival:
    """A backbone beside the first: its gain over it, as shares, and what embedding the rest with it would cost."""

    name: str
    gain: float
    interval: Interval
    verdict: str
    images: int
    hours: float | None
    bytes: int

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Rival:
        """Return the rival of a trial's row in JSON."""
        low, high = row["gain_ci"]
        told = (row[name] for name in ("verdict", "images", "hours", "bytes"))
        return cls(row["backbone"], row["gain"], (low, high), *told)


def recommend(first: str, rivals: Sequence[Rival]) -> str:
    """Return one sentence: take the best of those that are better, stay, or what would tell."""
    better = [rival for rival in rivals if rival.verdict == BETTER]
    if better:
        best = max(better, key=lambda rival: rival.gain)
        return f"Take {best.name}: {points(best.gain, best.interval)}; {_cost(best)}."
    if undecided := [rival for rival in rivals if rival.verdict == UNDECIDED]:
        told = "; ".join(f"{rival.name} {points(rival.gain, rival.interval)}" for rival in undecided)
        images = max(rival.images for rival in undecided)
        return f"Undecided after {images:,} images: {told}. More labels or a larger --max-share would tell."
    said = {WORSE: "is worse", TIED: "is as good"}
    told = "; ".join(f"{one.name} {said[one.verdict]}, {points(one.gain, one.interval)}" for one in rivals)
    return f"Stay with {first}: {told}."


def points(gain: float, interval: Interval) -> str:
    """Return a gain and its interval in words, in points of accuracy."""
    low, high = interval
    return f"{100 * gain:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"


def _cost(rival: Rival) -> str:
    """Return in words what embedding the rest takes."""
    return f"{duration(rival.hours)} and {size_text(rival.bytes)} for the rest of the corpus"


def duration(hours: float | None) -> str:
    """Return a time in words, such as "3.4 hours"; None is a time that is not known."""
    if hours is None:
        return "an unknown time"
    for unit, size in (("hours", 1.0), ("minutes", 1 / 60)):
        if hours >= size:
            return f"{hours / size:.1f} {unit}"
    return f"{hours * 3600:.0f} seconds"
