"""Backbones that a store keeps: which names stand for one, and what such a name stands for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath

from featurestore.errors import UsageError
from featurestore.storage.base import location
from featurestore.store import FeatureStore
from pipelines.backbones import finetuned, foreign
from pipelines.backbones.base import near
from pipelines.backbones.table import TABLE, Tap

Find = Callable[[str | PurePath, str], Tap]  # the place of a store, and a name


def _finetuned(store: str | PurePath, name: str) -> Tap:
    return finetuned.find(FeatureStore(store), name)


def _added(store: str | PurePath, name: str) -> Tap:
    return foreign.find(location(store), name)


KEPT: dict[str, Find] = {finetuned.PREFIX: _finetuned}  # by the prefix of their names; each stands for a whole tap


def finder(name: str) -> Find | None:
    """Return the function that looks a kept backbone up in a store; None if the name is one for ``table.resolve``."""
    prefix, colon, _ = name.partition(":")
    return KEPT.get(prefix + colon, None if name in TABLE else _added)


def check_place(name: str, store: str | PurePath | None) -> None:
    """Raise UsageError for a name that is not in the table, unless a store is named that may have it."""
    if store is None and finder(name) is not None:
        raise UsageError(
            f"There is no backbone {name!r} in the table{near(name, TABLE)}, or name the --store that has it."
        )
