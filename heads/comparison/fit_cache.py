"""Fits that are done, by what determines them, so that none is made twice and what was interrupted goes on."""

from __future__ import annotations

import binascii
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.dataset import AT_A_TIME
from featurestore.errors import StoreError
from featurestore.storage.files import read_sealed, write_sealed

VERSION = 1  # of what fits mean: another one makes older results unknown


@dataclass(frozen=True)
class Outcome:
    """What is kept of a fit: bool (m,), which of the rows that judged it it got right; its seconds; a remark."""

    right: np.ndarray
    seconds: float
    note: str = ""


class Results:
    """A folder of outcomes; without a folder, a memory that ends with the process."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._memory: dict[str, Outcome] = {}

    def get(self, key: str) -> Outcome | None:
        """The outcome of a fit, if it is known; a file that cannot be read is as good as none."""
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
        """Keep an outcome."""
        if self._folder is None:
            self._memory[key] = outcome
            return
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        right = np.packbits(outcome.right).tobytes().hex()
        told = {"rows": len(outcome.right), "right": right, "seconds": outcome.seconds, "note": outcome.note}
        write_sealed(path, {"key": key, **told})

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / key[:2] / f"{key}.json"


def key_of(data: str, **fit: Any) -> str:
    """Name a fit: a digest of the data, see ``digest``, and of everything else that determines it (JSON values)."""
    told = json.dumps({"version": VERSION, "data": data, **fit}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def digest(*columns: np.ndarray | str) -> str:
    """SHA-256 over columns of text or of keys, in hex."""
    total = hashlib.sha256()
    for column in columns:
        data = column.encode() if isinstance(column, str) else _joined(column)
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


def _joined(column: np.ndarray) -> bytes:
    """Its texts, or its keys in hex, with zeros between."""
    if column.dtype.kind == "S":
        return binascii.hexlify(column.tobytes(), "\0", column.itemsize)
    pieces = (column[start : start + AT_A_TIME].tolist() for start in range(0, len(column), AT_A_TIME))
    return b"\0".join("\0".join(piece).encode() for piece in pieces)
