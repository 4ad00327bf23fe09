"""Sorted arrays of the uris and contents that a store already knows: 33 bytes per uri, 32 per content.

For 100 million images a dict of uris would take tens of gigabytes; sorted arrays of digests take 3.3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

DIGEST = "S16"
NOTHING = b"\xff"  # stands for None; no text has these bytes, as they are not UTF-8
NEW, CHANGED = 0, 1  # results of Known.lookup; states given by callers start at 2


class Known:
    """A map from 16-byte keys to (16-byte value, state), built once and only read."""

    def __init__(self, keys: np.ndarray, values: np.ndarray, states: np.ndarray) -> None:
        order = np.argsort(keys, kind="stable")  # if keys are equal, the first one counts
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
        """Return uint8 (n,): NEW, CHANGED (another value), or the state of the row with the same key and value."""
        answer = np.full(len(keys), NEW, np.uint8)
        at, found = located(self._keys, keys)
        self._seen[at[found]] = True
        same = found.copy()
        same[found] = self._values[at[found]] == values[found]
        answer[found] = CHANGED
        answer[same] = self._states[at[same]]
        return answer

    def values(self, keys: np.ndarray) -> np.ndarray:
        """Return the values of keys, S16 (n,); empty for keys that are not in the map."""
        at, found = located(self._keys, keys)
        values = np.zeros(len(keys), DIGEST)
        values[found] = self._values[at[found]]
        return values

    def unseen(self, *states: int) -> np.ndarray:
        """Return the keys in one of these states that were never looked up: S16 (m,), sorted and unique."""
        keys = self._keys[~self._seen & np.isin(self._states, states)]
        return _distinct(keys[~contains(self._keys[self._seen], keys)])

    def count(self, *states: int) -> int:
        """Count the keys in one of these states."""
        return len(_distinct(self._keys[np.isin(self._states, states)]))

    def __len__(self) -> int:
        return len(self._keys)


class KeySet:
    """A growing set of fixed-width keys in little more memory than the keys: sorted arrays, merged as they grow.

    Each array is kept at least four times as long as the next. So there are few arrays, and a key is moved only a few
    times (a log-structured merge: O'Neil et al. 1996).
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


def text_digests(texts: Iterable[str | None]) -> np.ndarray:
    """Return one BLAKE2b digest per string, S16 (n,); None differs from the empty string."""
    return np.array(
        [hashlib.blake2b(NOTHING if text is None else text.encode(), digest_size=16).digest() for text in texts], DIGEST
    )


def row_digests(rows: Iterable[tuple[str | None, ...]]) -> np.ndarray:
    """Return one BLAKE2b digest per tuple of strings, S16 (n,)."""
    return np.array([hashlib.blake2b(text_digests(row).tobytes(), digest_size=16).digest() for row in rows], DIGEST)


def pair_digests(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return two int64 (n,) arrays side by side as S16 (n,); exact, without hashing."""
    return np.column_stack([first, second]).astype("<i8").view(DIGEST).reshape(-1)


def located(sorted_keys: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of each of ``keys`` in ``sorted_keys``, int (n,), and whether it is there, bool (n,)."""
    if len(sorted_keys) == 0:
        return np.zeros(len(keys), int), np.zeros(len(keys), bool)
    order, at = np.argsort(keys), np.empty(len(keys), int)
    at[order] = np.searchsorted(sorted_keys, keys[order])  # each is near the one before, and in the processor's cache
    at = np.minimum(at, len(sorted_keys) - 1)
    return at, sorted_keys[at] == keys


def contains(sorted_keys: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return which ``keys`` are in ``sorted_keys``, bool (n,)."""
    return located(sorted_keys, keys)[1]


def present(sorted_keys: np.ndarray, parts: Iterable[np.ndarray]) -> np.ndarray:
    """Return which ``sorted_keys`` are in one of the parts, bool (n,); of equal ones, the first is told of.

    The parts, which may come to more than fits in memory, are seen one by one.
    """
    found = np.zeros(len(sorted_keys), bool)
    for part in parts:
        at = np.searchsorted(sorted_keys, part)
        inside = at < len(sorted_keys)
        at, part = at[inside], part[inside]
        found[at[sorted_keys[at] == part]] = True
    return found


def _distinct(keys: np.ndarray) -> np.ndarray:
    """Return sorted keys once each; ``np.unique`` would sort them again, and import ``numpy.ma`` for it."""
    first = np.ones(len(keys), bool)
    first[1:] = keys[1:] != keys[:-1]
    return keys[first]
