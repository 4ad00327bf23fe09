"""Parsing of a search space from the command line's options or from a TOML file."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.errors import UsageError
from featurestore.storage.files import read_given
from heads import registry
from heads.comparison.space import Grid, Search

MAX_BYTES, MAX_POINTS = 2**16, 100_000  # bytes of a file, combinations per family in it
MAX_NUMBERS = 1000  # in one list of values


def from_options(
    heads: Sequence[str] | None = None,
    C: Sequence[float] | None = None,
    hidden: Sequence[Sequence[int]] | None = None,
    class_weights: Sequence[str | None] = (),
) -> Search:
    """Return the search that the command line's options describe.

    Raises:
        UsageError: an unknown family, an option whose parameter none of the families has, or an invalid value.
    """
    names = list(registry.FAMILIES if heads is None else heads)
    for name in names:
        registry.family(name)
    for option, values, parameter in (("--C", C, "C"), ("--hidden", hidden, "hidden")):
        if values and not any(parameter in registry.family(name).defaults for name in names):
            raise UsageError(f"{option} says nothing to {', '.join(names)}: no family of these has {parameter}.")
    if not (heads or C or hidden):
        return Search(class_weights=tuple(class_weights))
    grids: dict[str, Grid] = {}
    for name in names:
        defaults = registry.family(name).defaults
        given: list[dict[str, Any]] = []
        given += [{"C": value} for value in C or () if "C" in defaults]
        given += [{"hidden": list(value)} for value in hidden or () if "hidden" in defaults]
        for point in given:
            registry.complete(name, point)
        grids[name] = tuple(given)
    if not heads:  # without named families, the options choose those that have their parameters
        grids = {name: grid for name, grid in grids.items() if grid and registry.family(name).searched}
    return Search(grids, tuple(class_weights))


def from_file(path: Path) -> Search:
    """Read a search from a TOML file.

    The file has ``class_weight = [...]`` and one table ``[heads.NAME]`` per family, with a list of values per
    parameter. Every combination of a family's values is tried; a family with an empty table gets its default grid.

    Raises:
        UsageError: the file cannot be read or is too large, or has an unknown key, family, parameter or value.
    """
    told = read_given(path, "--search, a TOML file", MAX_BYTES, lambda data: tomllib.loads(data.decode()))
    unknown = told.keys() - {"heads", "class_weight"}
    heads, weights = told.get("heads", {}), told.get("class_weight", [])
    if unknown or not isinstance(heads, dict) or not isinstance(weights, list):
        raise UsageError(
            f"{path}: Expected: class_weight = [...] and tables [heads.NAME]. Got: {', '.join(sorted(told))}."
        )
    grids: dict[str, Grid] = {}
    for name, values in heads.items():
        if not isinstance(values, dict) or not all(isinstance(value, list) for value in values.values()):
            raise UsageError(f"{path}: Expected in [heads.{name}]: lists of values. Got: {values!r}.")
        if math.prod(map(len, values.values())) > MAX_POINTS:
            raise UsageError(f"{path}: Expected in [heads.{name}]: at most {MAX_POINTS:,} combinations. Got: more.")
        points = [dict(zip(values, point, strict=True)) for point in product(*values.values())]
        for point in points:
            registry.complete(name, point)
        grids[name] = tuple(points) if values else ()
    return Search(grids, tuple(class_weight(str(weight)) for weight in weights))


def class_weight(text: str) -> str | None:
    """Return None for ``none`` and "balanced" for ``balanced``.

    Raises:
        UsageError: anything else.
    """
    if text not in ("none", "balanced"):
        raise UsageError(f"Class weight: Expected: none or balanced. Got: {text!r}.")
    return None if text == "none" else text


def numbers(text: str) -> list[float]:
    """Parse ``0.1,1``, a list, or ``1e-4:1e2:13``: 13 numbers from 1e-4 to 1e2, evenly spaced in their logarithm.

    Raises:
        UsageError: anything else, or numbers that are not above 0.
    """
    try:
        parts = text.split(":") if ":" in text else text.split(",")
        count = int(parts.pop()) if ":" in text else len(parts)
        values = [float(part) for part in parts]
    except ValueError as error:
        raise UsageError(f"Expected: numbers such as 0.1,1 or 1e-4:1e2:13. Got: {text!r}.") from error
    if not all(0 < value < np.inf for value in values) or not 1 <= count <= MAX_NUMBERS:
        raise UsageError(f"Expected: numbers above 0, up to {MAX_NUMBERS:,} of them. Got: {text!r}.")
    if ":" not in text:
        return values
    if len(values) != 2:
        raise UsageError(f"Expected: numbers such as 0.1,1 or 1e-4:1e2:13. Got: {text!r}.")
    return [float(f"{value:.6g}") for value in np.geomspace(values[0], values[1], count)]
