"""The store's lock for its one writer: an flock on ``STORE/lock``, which the kernel frees however its holder ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from featurestore import layout
from featurestore.errors import StoreError, StoreLocked
from featurestore.storage.files import trouble


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Hold the store's lock: only one run may write at a time.

    Raises:
        StoreLocked: another run holds the lock.
        StoreError: the folder cannot be written to.
    """
    try:
        file = (store / layout.LOCK).open("ab+", buffering=0)  # unbuffered: close must not flush to a full disk
    except OSError as error:
        raise StoreError(trouble(error, store)) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).decode(errors="replace").strip() or "another run"
            raise StoreLocked(f"{store} is locked by {holder}: wait for it to end, then run this again.") from None
        with suppress(OSError):  # on a full disk the lock holds without its holder's name
            file.truncate(0)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            file.write(f"process {os.getpid()} on {os.uname().nodename} since {now}".encode())
        yield
