"""Prove that a bucket honours conditional puts, before anything depends on it.

There are servers that take the headers of a conditional put and ignore them, or compare and write in two steps. There
two writers would lose each other's rows without a word.
"""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor

from featurestore import layout
from featurestore.errors import StoreError
from featurestore.storage import buckets
from featurestore.storage.buckets import CREATE
from featurestore.storage.settings import settings

RACERS = 4

_proven: set[tuple[str, str]] = set()  # the buckets that this process has proved, with their servers


def prove(folder: str) -> None:
    """Race for an object in a folder, unless this process has done so in its bucket.

    Raises:
        StoreError: the server does not honour conditional puts.
        BucketError: the bucket is not there, cannot be reached, or refuses.
    """
    at = buckets.address(folder)
    place = (at.root, settings(at.scheme).get("AWS_ENDPOINT_URL", ""))
    if place in _proven:
        return
    uri = f"{folder}/.{layout.PROBE}.{secrets.token_hex(4)}.tmp"  # `penult gc` removes what a killed run leaves
    try:
        problem = _problem(uri)
    finally:
        buckets.delete(uri)
    if problem is not None:
        raise StoreError(
            f"{at.root} does not honour conditional writes ({problem}), so two runs could lose each other's rows: keep "
            "the store in a bucket that does, such as S3's, or on a disk."
        )
    _proven.add(place)


def _problem(uri: str) -> str | None:
    """Return what a bucket does wrong, or None."""
    with ThreadPoolExecutor(RACERS) as pool:
        won = [token for token in pool.map(lambda n: buckets.put(uri, _mark(n), CREATE), range(RACERS)) if token]
        if len(won) != 1:
            return f"{len(won)} of {RACERS} created one object"
        then = [token for token in pool.map(lambda n: buckets.put(uri, _mark(n), won[0]), range(RACERS)) if token]
    if len(then) != 1:
        return f"{len(then)} of {RACERS} replaced one version of an object"
    if buckets.put(uri, _mark(0), won[0]) is not None:
        return "a version was replaced that is no more"
    return None


def _mark(number: int) -> bytes:
    return f"{number} {secrets.token_hex(8)}".encode()
