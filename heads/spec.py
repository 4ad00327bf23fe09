"""What a head is fitted as: the name of its family, its parameters, its class weight. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class HeadSpec:
    """A head to fit.

    Attributes:
        head: its family, a name in ``heads.registry.FAMILIES``.
        params: the family's parameters; those not given have their defaults.
        class_weight: None, or "balanced" for rows weighted by ``n / (c * count of the class)``.

    Example:
        >>> HeadSpec("logreg", {"C": 0.1}).to_json()
        {'head': 'logreg', 'params': {'C': 0.1}, 'class_weight': None}
    """

    head: str
    params: Mapping[str, Any] = field(default_factory=dict)
    class_weight: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the spec as rows of leaderboards, keys of outcomes and runs' records hold it."""
        return {"head": self.head, "params": dict(self.params), "class_weight": self.class_weight}
