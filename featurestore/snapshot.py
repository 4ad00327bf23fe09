"""Which labelled images a head was made from: a few bytes per image, kept beside the head.

Later runs tell from it which images are new, which have another label now, and which the head was tested on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from featurestore import layout
from featurestore.dataset import Dataset
from featurestore.errors import StoreCorrupt
from featurestore.schema import KEY_BYTES
from featurestore.splits import SPLITS
from featurestore.storage.files import make_folder, size_of
from featurestore.storage.npz import OVERHEAD, read_npz, write_npz

MAX_BYTES = 2**34
NO_LABEL = ""  # stands for the label of an image that a snapshot lacks; no class has this name


@dataclass(frozen=True)
class Snapshot:
    """The labelled images of a dataset, by content.

    Attributes:
        keys: uint64 (n,), ascending: the first eight bytes of each content's sha256. Of a hundred million images two
            share them with a probability of 0.0003.
        names: str (c,), the classes.
        codes: int32 (n,), the class of each image.
        splits: uint8 (n,), the split of each image, a number in ``SPLITS``.
    """

    keys: np.ndarray
    names: np.ndarray
    codes: np.ndarray
    splits: np.ndarray

    @classmethod
    def of(cls, dataset: Dataset) -> Snapshot:
        """Return the snapshot of a dataset."""
        names, codes = np.unique(dataset.y, return_inverse=True)
        splits = np.argmax([dataset.splits == split for split in SPLITS], axis=0)
        return cls(short_keys(dataset.keys), names, codes.astype(np.int32), splits.astype(np.uint8))

    def of_split(self, split: str) -> np.ndarray:
        """Return the keys of a split's images, uint64 (m,), ascending."""
        return self.keys[self.splits == SPLITS.index(split)]

    def labels(self, keys: np.ndarray) -> np.ndarray:
        """Return the labels of images, str (m,), given their keys, uint64 (m,); NO_LABEL for unknown ones."""
        if not len(self.keys):
            return np.full(len(keys), NO_LABEL)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.names[self.codes[at]], NO_LABEL)

    def write(self, folder: PurePath) -> str:
        """Write the snapshot into a run's folder, durably; return the file's sha256 in hex."""
        names = np.frombuffer(json.dumps(self.names.tolist()).encode(), np.uint8)
        make_folder(folder)
        arrays = {"keys": self.keys, "codes": self.codes, "splits": self.splits, "names": names}
        return write_npz(folder / layout.LABELLED, arrays)

    @classmethod
    def read(cls, folder: PurePath, sha256: str) -> Snapshot:
        """Read the snapshot in a run's folder.

        Raises:
            StoreCorrupt: there is none, or it has another sha256.
        """
        path = folder / layout.LABELLED
        arrays = read_npz(path, min(MAX_BYTES, size_of(path) or OVERHEAD), sha256)
        if arrays.keys() != {"keys", "codes", "splits", "names"}:
            raise StoreCorrupt(f"Expected in {path}: keys, codes, splits and names. Got: {', '.join(arrays)}.")
        names = np.array(json.loads(arrays["names"].tobytes()), str)
        return cls(arrays["keys"], names, arrays["codes"], arrays["splits"])


def short_keys(keys: np.ndarray) -> np.ndarray:
    """Return the first eight bytes of digests as numbers: S32 (n,) → uint64 (n,), in the same order."""
    words = np.ascontiguousarray(keys, f"S{KEY_BYTES}").view(">u8").reshape(-1, KEY_BYTES // 8)
    return words[:, 0].astype(np.uint64)
