"""A command of the battery on a store in a bucket, in a process that waits less than people's do.

A module of its own: the process that it runs in imports no more than ``faults.imported`` has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from unittest import mock

from faults import child
from featurestore.storage import buckets, leases
from featurestore.storage.objects import ObjectStorage


@contextmanager
def hurry(expiry: float) -> Iterator[None]:
    """A lease ends ``expiry`` seconds after its last beat, requests are tried three times, what is old goes at once."""
    with (
        mock.patch.multiple(leases, EXPIRY=expiry, BEAT=expiry / 10, POLL=expiry / 20),
        mock.patch.multiple(buckets, MAX_TRIES=3, FIRST_PAUSE=0.02, MAX_PAUSE=0.1),
        mock.patch.object(ObjectStorage, "grace", timedelta(0)),
    ):
        buckets._client.cache_clear()
        yield
    buckets._client.cache_clear()


def run(expiry: float, words: Sequence[str]) -> None:
    """Run a command as ``faults.child`` does, in a hurry."""
    with hurry(expiry):
        child.run(words)
