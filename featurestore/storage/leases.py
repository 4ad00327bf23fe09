"""The lock of a store in a bucket: a lease, which ends by itself if its holder dies.

The lease is a small object: who holds it, a fencing number that grows with each holder, and a beat that grows every few
seconds as long as the holder lives. Each change is a conditional put over the state that was read, so of racing changes
one wins. Who finds it held watches it: if it has not changed for ``EXPIRY`` seconds by the watcher's own clock, its
holder is dead, and the watcher takes it. Clocks of two machines are never compared.

A holder that slept or was cut off may have lost its lease without knowing. So it renews the lease before each commit,
which fails if somebody has taken it; then nothing is committed.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from featurestore.errors import BucketError, ObjectMissing, StoreLocked
from featurestore.storage import buckets

EXPIRY = 30.0  # seconds without a beat after which a holder is dead
BEAT = 5.0  # seconds between two beats
POLL = 0.5  # seconds between two looks at a lease that somebody else holds
LOG = logging.getLogger("penult")

_held: dict[str, Lease] = {}  # by URI: those of this process


class Lease:
    """A lease that this process holds: its state, renewed by a thread until ``release``."""

    def __init__(self, uri: str, token: str, state: dict[str, Any]) -> None:
        self.uri, self.token, self.state = uri, token, state
        self.renewed = time.monotonic()
        self.lost: str | None = None  # who holds it now
        self._change, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease of {uri}", daemon=True)
        self._thread.start()

    def renew(self) -> None:
        """Make one beat; raise StoreLocked if somebody else has taken the lease."""
        with self._change:
            if self.lost is None:
                began, state = time.monotonic(), self.state | {"beat": self.state["beat"] + 1}
                if (token := buckets.put(self.uri, _bytes(state), self.token)) is None:
                    self.lost = (_read(self.uri) or (None, {}))[1].get("holder") or "another run"
                else:
                    self.token, self.state, self.renewed = token, state, began
        if self.lost is not None:
            raise StoreLocked(
                f"This run has lost the lock {self.uri}, as it did not beat for {EXPIRY:g} seconds, and "
                f"{self.lost} has it: run the same command again; what was finished is kept."
            )

    def release(self) -> None:
        """End the lease, so that the next one need not wait for its end."""
        self._over.set()
        self._thread.join()
        with suppress(BucketError):  # it ends by itself
            if self.lost is None:
                buckets.put(self.uri, _bytes(self.state | {"holder": None}), self.token)

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            try:
                self.renew()
            except StoreLocked as error:
                LOG.warning("%s", error)
                return
            except BucketError as error:
                LOG.warning("The lock %s cannot be renewed: %s", self.uri, error)


@contextmanager
def held(uri: str, holder: str) -> Iterator[str | None]:
    """Hold the lease at ``uri`` while the block runs; yield None, or who else holds it."""
    if uri in _held:
        yield str(_held[uri].state["holder"])
        return
    taken = _taken(uri, holder)
    if not isinstance(taken, Lease):
        yield taken
        return
    _held[uri] = taken
    try:
        yield None
    finally:
        del _held[uri]
        taken.release()


def confirm(uri: str, now: bool = False) -> None:
    """Make sure that the leases of this process over a location have not been lost; ``now``: ask the bucket.

    Without ``now``, one that was renewed a moment ago counts.

    Raises:
        StoreLocked: one has been.
        BucketError: the bucket does not say.
    """
    for place, lease in list(_held.items()):
        if uri.startswith(f"{place.rpartition('/')[0]}/") and (
            now or lease.lost or time.monotonic() - lease.renewed > EXPIRY / 2
        ):
            lease.renew()


def _taken(uri: str, holder: str) -> Lease | str:
    """Take the lease, or return the name of the living holder."""
    seen, since, said = None, time.monotonic(), False
    while True:
        token, state = _read(uri) or (buckets.CREATE, {})
        if token != seen and seen is not None:
            return str(state.get("holder") or "another run")
        if state.get("holder") is None or time.monotonic() - since >= EXPIRY:
            new = {"holder": holder, "fence": state.get("fence", 0) + 1, "beat": 0, "nonce": secrets.token_hex(8)}
            if (mine := buckets.put(uri, _bytes(new), token)) is not None:
                return Lease(uri, mine, new)
            return str((_read(uri) or (None, {}))[1].get("holder") or "another run")
        seen = token
        if not said and time.monotonic() - since > 2 * BEAT:
            said = True
            LOG.warning("%s is held by %s, who may be dead: taken in %g seconds.", uri, state["holder"], EXPIRY)
        time.sleep(POLL)


def _read(uri: str) -> tuple[str, dict[str, Any]] | None:
    """Return token and state of a lease; an object that is none counts as one that nobody holds."""
    try:
        data, info = buckets.get(uri)
        state = json.loads(data)
    except ObjectMissing:
        return None
    except ValueError:
        state = {}
    good = isinstance(state, dict) and type(state.get("fence", 0)) is int
    return info.token or "", state if good else {}


def _bytes(state: dict[str, Any]) -> bytes:
    return json.dumps(state).encode()
