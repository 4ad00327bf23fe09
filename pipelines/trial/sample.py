"""The sample of a trial: some images of each class, always the same ones, and more of them at each look."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from featurestore.splits import place

SHARES = (0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5, 0.8)  # of the labelled images, at each look
SMALL = 25_000  # images: of a smaller corpus as many are taken as of one of this size
FEW = 5  # images of each class at least
AT_ONCE = 65_536  # strings


@dataclass(frozen=True, eq=False)
class Sample:
    """Labelled images in the order in which a trial takes them.

    Within a class a hash of the image's URI, as it goes on from that of the corpus, and of the seed decides the order.
    So a larger share holds every image of a smaller one, each class is sampled at the same share, and the same corpus
    gives the same sample wherever it lies.

    Attributes:
        uris: string (n,).
        places: int (n,), of each image among those of its class, from 0.
        sizes: int (n,), how many images its class has.
    """

    uris: pa.ChunkedArray
    places: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, uris: pa.ChunkedArray, labels: pa.ChunkedArray, seed: int, root: str = "") -> Sample:
        """Put images in order; ``labels`` are their classes, string (n,), and ``root`` is where the corpus lies."""
        codes = labels.dictionary_encode().combine_chunks().indices.to_numpy()
        hashes = np.fromiter((place(uri.removeprefix(root).encode(), seed) for uri in _each(uris)), float, len(uris))
        order, counts = np.lexsort((hashes, codes)), np.bincount(codes)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        places = np.empty(len(uris), np.int64)
        places[order] = np.arange(len(uris)) - np.repeat(starts, counts)
        return cls(uris, places, counts[codes])

    def taken(self, share: float) -> pa.ChunkedArray:
        """Return the URIs of the images that a share takes."""
        return self.uris.filter(pa.array(self.at(share)))

    def at(self, share: float) -> np.ndarray:
        """Return which images a share takes, bool (n,): at least ``FEW`` of each class, and see ``SMALL``."""
        wanted = np.ceil(self.sizes * min(share * self.enlarged, 1.0) - 1e-9).astype(int)
        return self.places < np.maximum(wanted, FEW)

    def looks(self, max_share: float) -> list[float]:
        """Return the shares at which a trial looks, ascending; the last is ``max_share``.

        A share that takes no image more than the one before is left out.
        """
        looks, taken = list[float](), 0
        for share in [*(share for share in SHARES if share < max_share), max_share]:
            if (now := int(self.at(share).sum())) > taken:
                looks, taken = [*looks, share], now
        return looks

    @property
    def enlarged(self) -> float:
        """By how much more a share takes than it says, as the corpus is small; 1 if it is not."""
        return max(1.0, SMALL / max(len(self), 1))

    def __len__(self) -> int:
        return len(self.uris)


def _each(texts: pa.ChunkedArray) -> Iterator[str]:
    """Yield strings, some thousands of which are Python's at a time: a corpus may have a hundred million."""
    for start in range(0, len(texts), AT_ONCE):
        yield from texts.slice(start, AT_ONCE).to_pylist()
