"""What a listing told of a folder in a bucket, kept while a lease on it is held: each look would be a request.

Whoever holds a lease reads what was there when the lease began. What this process writes below such a folder makes the
next look list it again; what others write is seen by the next lease.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath

from featurestore.storage.base import Stat

Told = dict[str, Stat]  # by URI, of all objects below a folder


@dataclass
class _Glance:
    holders: int = 0
    told: Told | None = None


class Glances:
    """The folders under lease, and what ``look`` told of them. Threads may share it."""

    def __init__(self, look: Callable[[PurePath], Told]) -> None:
        self._look = look
        self._held: dict[PurePath, _Glance] = {}
        self._lock = threading.Lock()
        self._changes = 0

    @contextmanager
    def held(self, folder: PurePath) -> Iterator[None]:
        """Keep what is told of a folder while the block runs, beside others who do."""
        with self._lock:
            self._held.setdefault(folder, _Glance()).holders += 1
        try:
            yield
        finally:
            with self._lock:
                glance = self._held[folder]
                glance.holders -= 1
                if not glance.holders:
                    del self._held[folder]

    def over(self, path: PurePath) -> Told | None:
        """Return what is told of the folder under lease that a path is or lies in; None if there is no such folder."""
        with self._lock:
            folder = next((place for place in (path, *path.parents) if place in self._held), None)
            if folder is None:
                return None
            glance, before = self._held[folder], self._changes
            if glance.told is not None:
                return glance.told
        told = self._look(folder)
        with self._lock:
            if before == self._changes:
                glance.told = told
        return told

    def drop(self, path: PurePath) -> None:
        """Look again at what holds a path or lies below it: something was written there."""
        with self._lock:
            self._changes += 1
            for folder, glance in self._held.items():
                if path == folder or folder in path.parents or path in folder.parents:
                    glance.told = None
