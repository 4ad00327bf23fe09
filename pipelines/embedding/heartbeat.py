"""The sign of life of a worker: a note per shard in work, and an end to work that nobody waits for any more."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from featurestore.errors import RunnerError, StoreError
from featurestore.journal import Staging
from pipelines.embedding.files import Feed

BEAT_SECONDS = 0.5
SHARE = 0.02  # of the time that beats may take: they are rarer where the journal is far away


def worker_name() -> str:
    """Return the name of this process among the workers of a run."""
    return f"{os.uname().nodename}-{os.getpid()}"


def check_open(staging: Staging) -> None:
    """Raise RunnerError if a run has ended, whose worker this process is."""
    if not staging.is_open():
        raise RunnerError(f"The run {staging.run_id} has ended: this worker's shard is not needed.")


@contextmanager
def beating(staging: Staging, shard: int, feed: Feed) -> Iterator[None]:
    """Note in the journal how far a shard is while the block runs; end its feed if the run has ended meanwhile."""
    over = threading.Event()

    def beat() -> None:
        pause = BEAT_SECONDS
        while not over.wait(pause):
            began = time.monotonic()
            try:
                check_open(staging)
                staging.note_progress(shard, len(feed.files), worker_name())
            except RunnerError as error:
                feed.stop(error)
                return
            except StoreError:  # a journal that is away for a while
                pass
            pause = max(BEAT_SECONDS, (time.monotonic() - began) / SHARE)

    thread = threading.Thread(target=beat, daemon=True)
    staging.note_progress(shard, 0, worker_name())
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
