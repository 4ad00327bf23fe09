"""Backbones that a store keeps: which names stand for one, and what such a name stands for."""

from __future__ import annotations

from collections.abc import Callable

from featurestore.store import FeatureStore
from pipelines.backbones import finetuned
from pipelines.backbones.table import Tap

Find = Callable[[FeatureStore, str], Tap]
KEPT: dict[str, Find] = {finetuned.PREFIX: finetuned.find}  # by the prefix of their names; each stands for a whole tap


def finder(name: str) -> Find | None:
    """Return the function that looks a kept backbone up in a store; None if the name is one for ``table.resolve``."""
    prefix, colon, _ = name.partition(":")
    return KEPT.get(prefix + colon)
