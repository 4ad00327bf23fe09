"""The cache of fits, keyed by all that determines a fit: an interrupted comparison goes on where it stopped.

Of each fit its outcome is kept, and of a winner the head too, so that the same comparison again fits nothing.
"""

from __future__ import annotations

import binascii
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy as np

from featurestore import layout
from featurestore.dataset import AT_A_TIME
from featurestore.errors import HeadError, StoreError
from featurestore.storage.files import make_folder, read_sealed, write_sealed
from heads import artifact
from heads.base import Head

VERSION = 1  # of the fits' meaning: results of another version are not found
MAX_KEPT = 2**26  # bytes of a head's arrays; larger ones hold training rows and are made again


@dataclass(frozen=True)
class Outcome:
    """The stored result of a fit: ``right`` bool (m,), which of the scored rows it got right; its seconds; a remark."""

    right: np.ndarray
    seconds: float
    note: str = ""


class Results:
    """Outcomes and heads by key, in a folder; without a folder, in memory."""

    def __init__(self, folder: PurePath | None = None) -> None:
        self._folder = folder
        self._memory: dict[str, Outcome] = {}
        self._heads: dict[str, Head] = {}

    def get(self, key: str) -> Outcome | None:
        """Return the outcome of a fit; None if it is unknown or its file cannot be read."""
        if self._folder is None:
            return self._memory.get(key)
        try:
            told = read_sealed(self._path(key), required=True)
            if told.get("key") != key:
                return None
            right = np.unpackbits(np.frombuffer(bytes.fromhex(told["right"]), np.uint8))
            return Outcome(right[: told["rows"]].astype(bool), float(told["seconds"]), str(told["note"]))
        except (StoreError, KeyError, TypeError, ValueError):
            return None

    def put(self, key: str, outcome: Outcome) -> None:
        """Store an outcome."""
        if self._folder is None:
            self._memory[key] = outcome
            return
        path = self._path(key)
        make_folder(path.parent)
        right = np.packbits(outcome.right).tobytes().hex()
        told = {"rows": len(outcome.right), "right": right, "seconds": outcome.seconds, "note": outcome.note}
        write_sealed(path, {"key": key, **told})

    def head(self, key: str) -> Head | None:
        """Return the head of a fit, with its history; None if it was not kept or cannot be read."""
        if self._folder is None:
            return self._heads.get(key)
        try:
            head, meta = artifact.load(self._folder / layout.KEPT_HEADS / key)
            return replace(head, history=tuple(meta["history"])) if meta["key"] == key else None
        except (StoreError, HeadError, KeyError, TypeError):
            return None

    def keep(self, key: str, head: Head) -> None:
        """Store the head of a fit, unless it is large.

        Raises:
            HeadError: the head has numbers that are not finite.
        """
        if self._folder is None:
            self._heads[key] = head
        elif sum(array.nbytes for array in head.arrays.values()) <= MAX_KEPT:
            artifact.save(head, self._folder / layout.KEPT_HEADS / key, {"key": key, "history": list(head.history)})

    def _path(self, key: str) -> PurePath:
        assert self._folder is not None
        return self._folder / key[:2] / f"{key}.json"


def key_of(data: str, **fit: Any) -> str:
    """Return the key of a fit: SHA-256, in hex, of the data's ``digest`` and all else that determines it (as JSON)."""
    told = json.dumps({"version": VERSION, "data": data, **fit}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def digest(*columns: np.ndarray | str) -> str:
    """Return the SHA-256, in hex, of columns of text or of keys."""
    total = hashlib.sha256()
    for column in columns:
        data = column.encode() if isinstance(column, str) else _joined(column)
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


def _joined(column: np.ndarray) -> bytes:
    """Return a column's texts, or its keys in hex, with zero bytes between."""
    if column.dtype.kind == "S":
        return binascii.hexlify(column.tobytes(), "\0", column.itemsize)
    pieces = (column[start : start + AT_A_TIME].tolist() for start in range(0, len(column), AT_A_TIME))
    return b"\0".join("\0".join(piece).encode() for piece in pieces)
