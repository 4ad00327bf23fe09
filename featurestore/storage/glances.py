"""What a listing told of a folder in a bucket, kept while a lease on it is held: each look would be a request.

Whoever holds a lease reads what was there when the lease began. What this process writes below such a folder makes the
next look list it again; what others write is seen by the next lease. The holder of the store's lock is the only one who
commits, so what it was told outlasts its leases; but workers add files, and what was not there before is looked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath

from featurestore.storage.base import Stat

Told = dict[str, Stat]  # by URI, of all objects below a folder


@dataclass
class _Glance:
    holders: int = 0
    told: Told | None = None
    old: bool = False  # told under an earlier lease


class Glances:
    """The folders under lease, and what ``look`` told of them. Threads may share it."""

    def __init__(self, look: Callable[[PurePath], Told]) -> None:
        self._look = look
        self._held: dict[PurePath, _Glance] = {}
        self._locked: list[PurePath] = []
        self._lock = threading.Lock()
        self._changes = 0

    @contextmanager
    def held(self, folder: PurePath) -> Iterator[None]:
        """Keep what is told of a folder while the block runs, beside others who do."""
        with self._lock:
            glance = self._held.setdefault(folder, _Glance())
            glance.old |= not glance.holders
            glance.holders += 1
        try:
            yield
        finally:
            with self._lock:
                glance.holders -= 1
                self._forget()

    @contextmanager
    def locked(self, store: PurePath) -> Iterator[None]:
        """Keep what is told of the folders below a store while the block runs, lease after lease."""
        with self._lock:
            self._locked.append(store)
        try:
            yield
        finally:
            with self._lock:
                self._locked.remove(store)
                self._forget()

    def _forget(self) -> None:
        for folder, glance in list(self._held.items()):
            if not glance.holders and not any(store in folder.parents for store in self._locked):
                del self._held[folder]

    def over(self, path: PurePath, wanted: Iterable[str] = ()) -> Told | None:
        """Return what is told of the folder under lease that a path is or lies in; None if there is no such folder.

        Args:
            path: of the folder, or below it.
            wanted: the URIs that are asked for; if an earlier lease knew nothing of one, the folder is listed again.
        """
        with self._lock:
            folder = next((place for place in (path, *path.parents) if place in self._held), None)
            if folder is None:
                return None
            glance, before = self._held[folder], self._changes
            told = glance.told
            if told is not None and not (glance.old and any(uri not in told for uri in wanted)):
                return told
        told = self._look(folder)
        with self._lock:
            if before == self._changes:
                glance.told, glance.old = told, False
        return told

    def drop(self, path: PurePath) -> None:
        """Look again at what holds a path or lies below it: something was written there."""
        with self._lock:
            self._changes += 1
            for folder, glance in self._held.items():
                if path == folder or folder in path.parents or path in folder.parents:
                    glance.told = None
