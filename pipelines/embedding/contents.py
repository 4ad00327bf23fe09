"""Which contents a run has to embed: each once, in this process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterable, Iterator

import numpy as np

from featurestore.errors import ImageError
from featurestore.index import KeySet


class Contents:
    """The contents that need no embedding.

    These are the contents that the set held when the run began, and those that shards of this process have taken
    since. No other run writes to the set meanwhile, because this one holds the store's lock.
    """

    def __init__(self, known: np.ndarray, partly: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        """``partly``: keys S32 (n,), sorted, and how many views of each are stored."""
        self._known, self._partly = KeySet(known), partly
        self._taken: dict[bytes, int] = {}  # content → the shard in progress that took it
        self._errors: dict[bytes, ImageError] = {}
        self._open: set[bytes] = set()  # those taken that are neither embedded nor failed yet
        self._lock = threading.Condition()

    def take(self, key: bytes, shard: int) -> bool:
        """Return whether the caller must embed this content; true only for the first caller."""
        with self._lock:
            if key in self._taken or key in self._known:
                return False
            self._taken[key] = shard
            self._open.add(key)
            return True

    def settle(self, keys: Iterable[bytes]) -> None:
        """Note that contents are embedded."""
        with self._lock:
            self._open.difference_update(keys)
            self._lock.notify_all()

    def wait_for(self, keys: Collection[bytes]) -> None:
        """Wait until other shards have settled contents that they took; all of the caller's own are settled by then."""
        with self._lock:
            self._lock.wait_for(lambda: self._open.isdisjoint(keys))

    def stored_views(self, key: bytes) -> int:
        """Return how many views are stored of a content that lacks some."""
        if self._partly is None:
            return 0
        keys, counts = self._partly
        at = int(np.searchsorted(keys, np.array(key, "S32")))
        return int(counts[at]) if at < len(keys) and keys[at] == np.array(key, "S32") else 0

    @contextlib.contextmanager
    def of_shard(self, shard: int) -> Iterator[None]:
        """At the end of the block, mark the shard's contents as known; after an error, let them be taken again."""
        embedded = False
        try:
            yield
            embedded = True
        finally:
            with self._lock:
                own = [key for key, owner in self._taken.items() if owner == shard]
                for key in own:
                    del self._taken[key]
                self._open.difference_update(own)
                self._lock.notify_all()
                if embedded and own:
                    self._known.add(np.array(own, "S32"))

    def fail(self, key: bytes, error: ImageError) -> None:
        """Note why a content cannot be embedded, so that all files with this content get the error."""
        with self._lock:
            self._errors[key] = error
            self._open.discard(key)
            self._lock.notify_all()

    def error(self, key: bytes | None) -> ImageError | None:
        """Return why a content could not be embedded; None if there was no error."""
        return self._errors.get(key) if key else None
