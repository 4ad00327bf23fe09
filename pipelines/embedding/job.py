"""What a worker needs to know of a run."""

from __future__ import annotations

from dataclasses import dataclass

from featurestore.journal import Staging
from featurestore.storage.base import location
from pipelines.backbones.engine_options import EngineOptions
from pipelines.backbones.table import Tap
from pipelines.images.augmentation import Augmentation


@dataclass(frozen=True)
class EmbedJob:
    """What a worker needs to embed shards; it is small enough to send to another machine."""

    store: str
    run_id: str
    feature_set: str
    tap: Tap
    engine: EngineOptions
    views: int = 0  # augmented views per image; 0 embeds the image itself
    augmentation: Augmentation | None = None

    def staging(self) -> Staging:
        """Return the run's journal."""
        return Staging(location(self.store), self.run_id)
