"""What is known already, in sorted arrays: of each uri in 33 bytes per row (the plan), of each content in 32.

At 100 million files a dict of uris would take tens of gigabytes; two sorted arrays of digests take 3.3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

DIGEST = "S16"
NOTHING = b"\xff"  # in no text: this is no UTF-8
NEW, CHANGED = 0, 1  # answers of Known.lookup; a table's own states start at 2


class Known:
    """A map from 16-byte keys to (16-byte value, state), built once and only read."""

    def __init__(self, keys: np.ndarray, values: np.ndarray, states: np.ndarray) -> None:
        order = np.argsort(keys, kind="stable")  # of equal keys the first one answers
        self._keys, self._values, self._states = keys[order], values[order], states[order]
        self._seen = np.zeros(len(keys), bool)

    @classmethod
    def from_parts(cls, parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Known:
        """Build from (keys S16, values S16, states uint8) pieces."""
        keys, values, states = [np.empty(0, DIGEST)], [np.empty(0, DIGEST)], [np.empty(0, np.uint8)]
        for key, value, state in parts:
            keys.append(key)
            values.append(value)
            states.append(state)
        return cls(np.concatenate(keys), np.concatenate(values), np.concatenate(states))

    def lookup(self, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return uint8 (n,): NEW, CHANGED (another value), or the state of the row that is the same."""
        answer = np.full(len(keys), NEW, np.uint8)
        at, found = self._find(keys)
        self._seen[at[found]] = True
        same = found.copy()
        same[found] = self._values[at[found]] == values[found]
        answer[found] = CHANGED
        answer[same] = self._states[at[same]]
        return answer

    def values(self, keys: np.ndarray) -> np.ndarray:
        """The values of keys, S16 (n,); of those that are not there, empty."""
        at, found = self._find(keys)
        values = np.zeros(len(keys), DIGEST)
        values[found] = self._values[at[found]]
        return values

    def unseen(self, *states: int) -> np.ndarray:
        """Keys in one of these states that were never looked up: S16 (m,), sorted and unique."""
        keys = self._keys[~self._seen & np.isin(self._states, states)]
        return np.unique(keys[~contains(self._keys[self._seen], keys)])

    def count(self, *states: int) -> int:
        """How many keys are in one of these states."""
        return len(np.unique(self._keys[np.isin(self._states, states)]))

    def _find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each key is, int (n,), and whether it is there, bool (n,)."""
        if len(self._keys) == 0:
            return np.zeros(len(keys), int), np.zeros(len(keys), bool)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return at, self._keys[at] == keys

    def __len__(self) -> int:
        return len(self._keys)


class KeySet:
    """A growing set of fixed-width keys in little more than their own bytes: sorted arrays, merged as they grow.

    Each array is kept at least four times as long as the next, so there are few of them and a key is moved only a
    few times (a log-structured merge: O'Neil et al. 1996).
    """

    def __init__(self, keys: np.ndarray) -> None:
        """``keys``: sorted and unique."""
        self._levels = [keys]

    def add(self, keys: np.ndarray) -> None:
        """Add keys that are unique and not in the set yet."""
        self._levels.append(np.sort(keys))
        while len(self._levels) > 1 and len(self._levels[-2]) < 4 * len(self._levels[-1]):
            merged = np.concatenate([self._levels.pop(), self._levels.pop()])
            merged.sort()
            self._levels.append(merged)

    def __contains__(self, key: bytes) -> bool:
        one = np.array([key], self._levels[0].dtype)
        return any(contains(level, one)[0] for level in self._levels)


def text_digests(rows: Iterable[str | None] | Iterable[tuple[str | None, ...]]) -> np.ndarray:
    """One BLAKE2b digest (S16) a string or tuple of strings; None differs from the empty string."""
    digests = _Digests()
    return np.array([digests[row] if isinstance(row, tuple) else _digest(row) for row in rows], DIGEST)


def pair_digests(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two int64 (n,) arrays side by side as S16 (n,): exact, nothing is hashed."""
    return np.column_stack([first, second]).astype("<i8").view(DIGEST).reshape(-1)


def contains(sorted_keys: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Bool (n,): which ``keys`` are in ``sorted_keys``."""
    if len(sorted_keys) == 0:
        return np.zeros(len(keys), bool)
    at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return sorted_keys[at] == keys


class _Digests(dict[tuple[str | None, ...], bytes]):
    """Of tuples, each worked out once: labels are the same few again and again."""

    def __missing__(self, row: tuple[str | None, ...]) -> bytes:
        self[row] = hashlib.blake2b(b"".join(map(_digest, row)), digest_size=16).digest()
        return self[row]


def _digest(text: str | None) -> bytes:
    return hashlib.blake2b(NOTHING if text is None else text.encode(), digest_size=16).digest()
