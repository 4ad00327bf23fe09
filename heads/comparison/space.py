"""The search space of a comparison: families, their parameters, class weights.

The command line's options name this module, and must be shown before anything heavy is imported. So the registry is
imported only when candidates are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

UNBALANCED = 3.0  # ratio of the largest class to the smallest from which a default search also tries class weights

Grid = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Candidate:
    """A head to try: its family, all its parameters, and its class weight, None or "balanced"."""

    head: str
    params: dict[str, Any]
    class_weight: str | None = None


@dataclass(frozen=True)
class Search:
    """The families, parameters and class weights to try. An empty search is a default that depends on the data.

    Attributes:
        grids: by family, parameters to try, those not given at their defaults; () is the family's default grid.
        class_weights: each None or "balanced"; if empty, the balance of the classes decides.
    """

    grids: Mapping[str, Grid] = field(default_factory=dict)
    class_weights: tuple[str | None, ...] = ()

    def candidates(self, y: np.ndarray, width: int, to_score: int) -> tuple[list[Candidate], list[str]]:
        """Return the candidates for training labels, simple ones first, and notes on families that were left out.

        Args:
            y: str (n,).
            width: d, the number of features.
            to_score: the number of rows that each head is scored on.

        Raises:
            UsageError: an unknown family or parameter.
        """
        import numpy as np

        from heads import registry

        names, counts = np.unique(y, return_counts=True)
        grids, notes = dict(self.grids), []
        if not grids:
            slow = [name for name, row in registry.FAMILIES.items() if row.is_slow(len(y), len(names), to_score, width)]
            grids = {name: () for name in registry.FAMILIES if name not in slow}
            notes = [f"{name} was left out: it is slow for {len(y):,} rows and {len(names)} classes." for name in slow]
        unbalanced = counts.max() >= UNBALANCED * counts.min()
        weights = self.class_weights or ((None, "balanced") if unbalanced else (None,))
        found = [
            Candidate(name, registry.complete(name, point), weight)
            for name, grid in sorted(grids.items(), key=lambda item: list(registry.FAMILIES).index(item[0]))
            for weight in _usable(name, weights, bool(self.class_weights))
            for point in grid or registry.family(name).grid
        ]
        return found, notes


DEFAULT = Search()


def _usable(name: str, weights: Sequence[str | None], asked: bool) -> Sequence[str | None]:
    """Return the class weights to try with a family; unless ``asked``, only linear heads are tried with several."""
    from heads import registry

    known = registry.family(name)
    if not known.weighted or not (asked or known.loss):
        return (None,)
    return weights
