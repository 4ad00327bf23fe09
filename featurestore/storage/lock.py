"""The store's lock for its one writer, held on ``STORE/lock``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import PurePath

from featurestore import layout
from featurestore.errors import StoreLocked
from featurestore.storage.base import storage_of


@contextmanager
def locked(store: PurePath) -> Iterator[None]:
    """Hold the store's lock: only one run may write at a time.

    Raises:
        StoreLocked: another run holds the lock.
        StoreError: the folder cannot be written to.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    ours = f"process {os.getpid()} on {os.uname().nodename} since {now}"
    with storage_of(store).lock(store / layout.LOCK, ours) as holder:
        if holder is not None:
            raise StoreLocked(f"{store} is locked by {holder}: wait for it to end, then run this again.")
        yield
