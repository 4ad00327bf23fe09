"""The images of a fine-tuning: read and decoded ahead of the training, counted, and the lost ones noted."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from featurestore.concurrency import ahead_of
from featurestore.dataset import Dataset, hex_ids
from featurestore.errors import ImageError
from featurestore.machine import available_cores
from pipelines import signals
from pipelines.backbones.table import Tap
from pipelines.images import decoder
from pipelines.images.augmentation import Augmentation
from pipelines.images.views import random_view
from pipelines.sources import corpus

STAGES = ("train", "validate", "checkpoint", "embed", "score")
BATCHES_AHEAD = 2  # per core: batches decoded and not yet trained on

Progress = Callable[[int, int], None]  # images done, images in all
Batch = tuple[np.ndarray, np.ndarray]


@dataclass
class Watch:
    """Counts images, and the seconds per stage."""

    total: int
    progress: Progress | None
    pictures: int = 0
    trained: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def count(self, pictures: int) -> None:
        """Add images that have been read, and report progress."""
        self.pictures += pictures
        self.ahead(0)

    def ahead(self, pictures: int, _of: int = 0) -> None:
        """Report progress including this many images that will be counted later."""
        if self.progress:
            self.progress(self.pictures + pictures, self.total)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        since = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - since


@dataclass
class Pictures:
    """Reads and decodes a dataset's images, and notes in ``lost`` those that are missing, changed or unreadable."""

    dataset: Dataset
    tap: Tap
    batch_size: int
    watch: Watch
    lost: dict[str, str] = field(default_factory=dict)  # content → why

    def batches(self, rows: np.ndarray, views: tuple[Augmentation, int] | None = None) -> Iterator[Batch]:
        """Yield pixels uint8 (b, s, s, 3) and their rows int (b,), in order, decoded ahead in threads.

        Args:
            rows: indices of rows of the dataset.
            views: the augmentation and the number of the view; None for the unchanged images.
        """
        chunks = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]

        def load(chunk: np.ndarray) -> list[np.ndarray | None]:
            return [self._load(row, views) for row in chunk]

        cores = available_cores()
        with ThreadPoolExecutor(cores) as pool:
            for chunk, loaded in zip(chunks, ahead_of(pool, load, chunks, BATCHES_AHEAD * cores), strict=True):
                signals.check()
                self.watch.count(len(chunk))
                pixels = [p for p in loaded if p is not None]
                if pixels:
                    yield np.stack(pixels), chunk[[p is not None for p in loaded]]

    def nothing_left(self) -> str:
        """Return the sentence that none of the images can be read any more, and why."""
        counts = ", ".join(f"{count} × {why}" for why, count in Counter(self.lost.values()).most_common())
        rows = zip(self.dataset.ids, self.dataset.uris, strict=True)
        first = next(uri for key, uri in rows if key in self.lost)
        return f"No image of a split can be read any more ({counts}), for example {first}: bring the corpus back."

    def _load(self, row: int, views: tuple[Augmentation, int] | None) -> np.ndarray | None:
        key, uri = str(hex_ids(self.dataset.keys[row : row + 1])[0]), str(self.dataset.uris[row])
        try:
            data = corpus.read(uri)[0]
            if hashlib.sha256(data).hexdigest() != key:
                self.lost[key] = "changed"
                return None
            pixels = decoder.decode(data, self.tap.preprocessing).pixels
        except ImageError as error:
            self.lost[key] = error.error_type
            return None
        return pixels if views is None else random_view(pixels, views[0], bytes.fromhex(key), views[1])
