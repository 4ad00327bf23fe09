"""What the workers of a run note beside its journal while they work: how far a shard is, and who works on it.

Nothing depends on these notes but what people see and how carefully a shard is tried again; losing one does no harm.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath

from featurestore.errors import StoreError
from featurestore.storage.base import storage_of
from featurestore.storage.files import listed, read_bytes, replacing

SUFFIX = ".progress"
ALIVE_SECONDS = 30.0  # since a worker's last note changed
MAX_BYTES = 200
_NOTE = re.compile(rb"(\d{1,20})(?: (\S+))?")  # older workers give no name


@dataclass(frozen=True)
class Progress:
    """How far a run is: images done in all shards, and how many workers have noted something lately."""

    images: int = 0
    workers: int = 0


@dataclass(frozen=True)
class Note:
    """One shard's note: images done, and the worker's name, "" if it has none."""

    images: int
    worker: str


def write(folder: PurePath, shard: int, note: Note) -> None:
    """Replace the note of a shard."""
    with suppress(StoreError), replacing(folder / f"{shard}{SUFFIX}", durable=False) as temporary:
        temporary.write_text(f"{note.images} {note.worker}".rstrip(), encoding="utf-8")


def read(folder: PurePath, shard: int) -> Note | None:
    """Return the note of a shard; None if there is none that can be read."""
    return _read(folder / f"{shard}{SUFFIX}")


def shards(folder: PurePath) -> list[int]:
    """Return the numbers of the shards that have a note."""
    found = (path for path in listed(folder) if path.suffix == SUFFIX)
    return [int(path.stem) for path in found if path.stem.isdecimal()]


class Watch:
    """Reads the notes in a folder again and again; only those that have changed since."""

    def __init__(self, folder: PurePath) -> None:
        self._folder = folder
        self._seen: dict[PurePath, tuple[str, Note, float]] = {}

    def read(self) -> Progress:
        """Return how far the run is; raise StoreError if the folder cannot be listed."""
        now = time.monotonic()
        for path, token in self._tokens():
            if path not in self._seen or self._seen[path][0] != token:
                self._seen[path] = token, _read(path) or Note(0, ""), now
        notes = self._seen.values()
        alive = {note.worker for _, note, since in notes if note.worker and now - since < ALIVE_SECONDS}
        return Progress(sum(note.images for _, note, _ in notes), len(alive))

    def _tokens(self) -> Iterator[tuple[PurePath, str]]:
        for path, found in storage_of(self._folder).walk(self._folder):
            if path.suffix == SUFFIX:
                yield path, found.token


def _read(path: PurePath) -> Note | None:
    with suppress(StoreError):
        if found := _NOTE.fullmatch(read_bytes(path, MAX_BYTES)):
            return Note(int(found[1]), (found[2] or b"").decode(errors="replace"))
    return None
