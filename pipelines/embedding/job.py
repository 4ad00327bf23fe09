"""What a worker needs to know of a run."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from featurestore import layout
from featurestore.errors import EngineError
from featurestore.journal import Staging
from featurestore.storage.base import location
from pipelines.backbones.engine_options import EngineOptions
from pipelines.backbones.table import Tap
from pipelines.images.augmentation import Augmentation


def _installed() -> str:
    return importlib.metadata.version("penult")


@dataclass(frozen=True)
class HandedGraph:
    """A converted graph in the journal of a run, for all its workers; see ``pipelines.backbones.graphs.Handed``."""

    key: str
    store: str = field(compare=False)
    run_id: str = field(compare=False)

    def write(self, path: Path) -> None:
        """Write both files; raise StoreCorrupt if one is not what the driver put there."""
        staging = Staging(location(self.store), self.run_id)
        path.write_bytes(staging.attached(layout.GRAPH))
        path.with_suffix(".bin").write_bytes(staging.attached(layout.GRAPH_WEIGHTS))


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
    graph: HandedGraph | None = None  # if each worker need not make its own
    # Shards from this one on hold images that a worker may have died of.
    suspect_from: int = field(default=sys.maxsize, compare=False)
    version: str = field(default_factory=_installed)  # of the driver's penult

    def check_version(self) -> None:
        """Raise EngineError if this process has another version of penult than the one that made the job."""
        if (ours := _installed()) != self.version:
            raise EngineError(
                f"Expected: penult {self.version} on the worker {os.uname().nodename}, as on the driver. Got: {ours}: "
                "install the same version on both."
            )

    def staging(self) -> Staging:
        """Return the run's journal."""
        return Staging(location(self.store), self.run_id)
