"""The sample of a trial: some images of each class, always the same ones, and more of them at each look."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featurestore.splits import place

SHARES = (0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5, 0.8)  # of the labelled images, at each look
SMALL = 25_000  # images: of a smaller corpus as many are taken as of one of this size
FEW = 5  # images of each class at least


@dataclass(frozen=True, eq=False)
class Sample:
    """Labelled images in the order in which a trial takes them.

    Within a class a hash of the image's URI and of the seed decides the order. So a larger share holds every image of
    a smaller one, each class is sampled at the same share, and the same corpus gives the same sample.

    Attributes:
        uris: object (n,).
        labels: str (n,).
        places: int (n,), of each image among those of its class, from 0.
        sizes: int (n,), how many images its class has.
    """

    uris: np.ndarray
    labels: np.ndarray
    places: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, uris: list[str], labels: list[str], seed: int) -> Sample:
        """Put images in order; ``labels`` are their classes."""
        kept, codes, counts = np.unique(
            np.array(labels, np.dtypes.StringDType()), return_inverse=True, return_counts=True
        )
        hashes = np.array([place(uri.encode("utf-8", "surrogateescape"), seed) for uri in uris])
        named = np.array(uris, object)
        order = np.lexsort((hashes, codes))
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        places = np.empty(len(uris), int)
        places[order] = np.arange(len(uris)) - np.repeat(starts, counts)
        return cls(named, kept[codes], places, counts[codes])

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
