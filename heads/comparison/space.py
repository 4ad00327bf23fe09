"""What a comparison tries, families with parameters and class weights, and how it evaluates them.

The command line's options name this module, and must be shown before anything heavy is imported. So the registry is
imported only when candidates are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from featurestore.errors import UsageError
from featurestore.limits import check_amount, check_count, check_seed
from featurestore.options import Option, budget
from heads.spec import HeadSpec

if TYPE_CHECKING:
    import numpy as np

UNBALANCED = 3.0  # ratio of the largest class to the smallest from which a default search also tries class weights
MAX_FOLDS = MAX_SEEDS = 100
MAX_SHOTS = 1_000_000  # images per class
PREFERENCES = ("best", "simple")

Grid = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Search:
    """The families, parameters and class weights to try. An empty search is a default that depends on the data.

    Attributes:
        grids: by family, parameters to try, those not given at their defaults; () is the family's default grid.
        class_weights: each None or "balanced"; if empty, the balance of the classes decides.
    """

    grids: Mapping[str, Grid] = field(default_factory=dict)
    class_weights: tuple[str | None, ...] = ()

    def candidates(self, y: np.ndarray, width: int, to_score: int) -> tuple[list[HeadSpec], list[str]]:
        """Return the candidates for training labels, simple ones first, and notes on families that were left out.

        Candidates have all their parameters.

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
            searched = {name: row for name, row in registry.FAMILIES.items() if row.searched}
            slow = [name for name, row in searched.items() if row.is_slow(len(y), len(names), to_score, width)]
            grids = {name: () for name in searched if name not in slow}
            notes = [f"{name} was left out: it is slow for {len(y):,} rows and {len(names)} classes." for name in slow]
        unbalanced = counts.max() >= UNBALANCED * counts.min()
        weights = self.class_weights or ((None, "balanced") if unbalanced else (None,))
        found = [
            HeadSpec(name, registry.complete(name, point), weight)
            for name, grid in sorted(grids.items(), key=lambda item: list(registry.FAMILIES).index(item[0]))
            for weight in _usable(name, weights, bool(self.class_weights))
            for point in grid or registry.family(name).grid
        ]
        return found, notes


DEFAULT = Search()


@dataclass(frozen=True)
class Evaluation:
    """How candidates are evaluated.

    Attributes:
        folds: 0 to choose on validation, else the number of folds that train is cut into. Validation then only sets
            the winner's temperature and, if it is a dense net, stops its final fit early.
        seeds: how many; a family whose fit is random is fitted once per seed and ranked by the mean.
        fewshot: for each k, the best candidate of each family is fitted to k rows per class and scored on validation.
            The rows are drawn anew for each of at least three seeds.
        prefer: which head wins: "best", the first on the leaderboard, or "simple", the simplest that is tied with it.
        budget: seconds after which no new fit begins; the fits done until then are ranked.
        first_seed: the head of this seed is kept; further seeds follow it.
    """

    folds: Annotated[int, Option("Choose by this many folds of train, not on validation.", flag="--cv")] = 0
    seeds: Annotated[int, Option("How many seeds for heads whose fit is random.")] = 1
    fewshot: tuple[int, ...] = ()
    prefer: Annotated[
        str, Option("Keep the best head, or the simple one: the simplest that is tied with the best.", metavar="WHICH")
    ] = "best"
    budget: Annotated[float | None, Option("Begin nothing more after 60s, 5m or 1h.", parse=budget, metavar="TIME")] = (
        None
    )
    first_seed: int = 0

    @property
    def each_seed(self) -> range:
        """The seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def check(self) -> None:
        """Raise UsageError for what no comparison can be made with, before any features are read.

        Raises:
            UsageError: no seed or too many, one fold or too many, few-shot with no image, an unknown preference, or no
                time.
        """
        if not 1 <= self.seeds <= MAX_SEEDS:
            got = "more" if self.seeds > 0 else "none"
            raise UsageError(f"Expected: --seeds, at least one seed and at most {MAX_SEEDS}. Got: {got}.")
        for seed in (self.each_seed[0], self.each_seed[-1]):
            check_seed("a seed", seed)
        if self.folds != 0 and not 2 <= self.folds <= MAX_FOLDS:
            raise UsageError(
                f"Expected: --cv of at least 2 folds and at most {MAX_FOLDS}, or 0 to choose on validation. "
                f"Got: {self.folds}."
            )
        for k in self.fewshot:
            check_count("--fewshot-k", k, 1, MAX_SHOTS)
        if self.prefer not in PREFERENCES:
            raise UsageError(f"Expected: --prefer {' or '.join(PREFERENCES)}. Got: {self.prefer!r}.")
        if self.budget is not None:
            check_amount("--budget in seconds", self.budget)


def _usable(name: str, weights: Sequence[str | None], asked: bool) -> Sequence[str | None]:
    """Return the class weights to try with a family; unless ``asked``, only linear heads are tried with several."""
    from heads import registry

    known = registry.family(name)
    if not known.weighted or not (asked or (known.loss and not known.kernel)):
        return (None,)
    return weights
