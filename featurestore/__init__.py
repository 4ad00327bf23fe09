"""The feature store: what was computed, from what, and whether it can be trusted.

``featurestore.store`` is its front door. Imports neither ``heads`` nor ``pipelines``: the store knows no CNN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featurestore.store import FeatureStore

__all__ = ["FeatureStore"]


def __getattr__(name: str) -> type[FeatureStore]:
    if name == "FeatureStore":  # imported when asked for: errors and specs are needed without Lance
        from featurestore.store import FeatureStore

        return FeatureStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
