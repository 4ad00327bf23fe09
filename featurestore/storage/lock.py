"""The store's lock for its one writer, held on ``STORE/lock``, and how long to wait for it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import PurePath

from featurestore import layout
from featurestore.errors import StoreLocked
from featurestore.storage.base import storage_of

POLL_SECONDS = 1.0
SAID_SECONDS = 60.0  # between lines that say who is waited for

LOG = logging.getLogger("penult")
_patience = ContextVar("patience", default=0.0)  # seconds


@contextmanager
def waiting(seconds: float) -> Iterator[None]:
    """Let ``locked`` wait inside the block, in this thread: up to ``seconds`` each time it finds a store locked."""
    before = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(before)


@contextmanager
def locked(store: PurePath) -> Iterator[None]:
    """Hold the store's lock: only one run may write at a time.

    Raises:
        StoreLocked: another run holds the lock, and holds it still when the time of ``waiting`` is over.
        StoreError: the folder cannot be written to.
    """
    end = time.monotonic() + _patience.get()
    say_at = time.monotonic()
    while True:
        with storage_of(store).lock(store / layout.LOCK, _ours()) as holder:
            if holder is None:
                yield
                return
        now = time.monotonic()
        if now >= end:
            raise StoreLocked(f"{store} is locked by {holder}: wait for it to end, then run this again.")
        if now >= say_at:
            say_at = now + SAID_SECONDS
            LOG.warning("%s is locked by %s: waiting for it to end.", store, holder)
        time.sleep(min(POLL_SECONDS, end - now))


def _ours() -> str:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return f"process {os.getpid()} on {os.uname().nodename} since {now}"
