"""Options that are written in another way than the fields they are for: as flags, as text, or in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from featurestore.errors import UsageError
from featurestore.options import Option, whole_numbers
from heads.comparison.space import Search
from pipelines.options import CompareOptions, EmbedOptions

# what an error says was expected
SHOTS = "--fewshot-k with whole numbers such as 1,5,10"
WIDTHS = "--hidden with widths such as 1024,512"


@dataclass(frozen=True)
class CropFlags:
    """Flags that stand for ``EmbedOptions.crop``."""

    squash: Annotated[bool, Option("Squeeze a rectangle into a square (the default).", flag="--squash")] = False
    center: Annotated[bool, Option("Take the largest central square of a rectangle.", flag="--center-crop")] = False
    pad: Annotated[bool, Option("Add black to a rectangle until it is square.", flag="--pad")] = False

    def put_into(self, options: EmbedOptions) -> EmbedOptions:
        """Return the options with the crop rule that was asked for.

        Raises:
            UsageError: more than one was.
        """
        chosen = [name for name in ("squash", "center", "pad") if getattr(self, name)]
        if len(chosen) > 1:
            raise UsageError("Give one of --squash, --center-crop and --pad.")
        return replace(options, crop=chosen[0]) if chosen else options


@dataclass(frozen=True)
class WrittenOptions:
    """What is given as text, or in a file, for fields of ``CompareOptions``."""

    heads: Annotated[str | None, Option("Families, comma-separated; by default all that suit the data.", many=True)] = (
        None
    )
    C: Annotated[
        str | None, Option("Values of C, as 0.01,0.1 or 1e-4:1e2:13 (13 from 1e-4 to 1e2).", flag="--C", many=True)
    ] = None
    hidden: Annotated[
        list[str] | None, Option("Widths of a dense net's hidden layers, as 256 512,256 for two nets.", many=True)
    ] = None
    class_weight: Annotated[
        str | None, Option("none, balanced, or none,balanced to try both; by default what suits the data.", many=True)
    ] = None
    search: Annotated[
        Path | None, Option("TOML file: [heads.NAME] with lists of values; in place of the options above.")
    ] = None
    fewshot_k: Annotated[
        str | None,
        Option("Also train on this few images per class, as 1,5,10, each drawn anew three times.", many=True),
    ] = None
    sets: Annotated[
        list[str] | None,
        Option("Feature set, by name or its beginning; several: which is better?", flag="--set"),
    ] = None

    def put_into(self, options: CompareOptions, more_nets: Sequence[str] = ()) -> CompareOptions:
        """Return the options with what is written here; ``more_nets`` are further nets of ``hidden``.

        Raises:
            UsageError: a text cannot be read, or two options exclude each other.
        """
        sets = tuple(self.sets or ())
        shots = () if self.fewshot_k is None else whole_numbers(SHOTS, self.fewshot_k)
        return replace(
            options,
            search=self._search(more_nets),
            evaluation=replace(options.evaluation, fewshot=shots),
            sets=sets if len(sets) > 1 else (),
            data=replace(options.data, feature_set=sets[0] if len(sets) == 1 else None),
        )

    def _search(self, more_nets: Sequence[str]) -> Search:
        from heads.comparison import search

        if self.search is None:
            nets = [net for words in (*(self.hidden or ()), *more_nets) for net in words.split() or [""]]
            return search.from_options(
                None if self.heads is None else self.heads.split(","),
                None if self.C is None else search.numbers(self.C),
                [whole_numbers(WIDTHS, net) for net in nets],
                () if self.class_weight is None else [search.class_weight(w) for w in self.class_weight.split(",")],
            )
        if any(option is not None for option in (self.heads, self.C, self.hidden, self.class_weight)):
            raise UsageError("--search is in place of --heads, --C, --hidden and --class-weight: leave those out.")
        return search.from_file(self.search)
