"""The cache folder of this machine: copies and conversions that cost only time to make again.

Copies of objects are bounded: before one is added, those that were used longest ago go, but none that was used within
the last hour, which somebody may be reading.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from featurestore.errors import StoreError, trouble
from featurestore.options import memory

OBJECTS = "objects"
FOLDER, LIMIT = "PENULT_CACHE", "PENULT_CACHE_LIMIT"  # variables
SHARE = 0.1  # of the disk, for copies
IN_USE = 3600.0  # seconds


def keep_in(folder: Path | None, limit: int | None) -> None:
    """Set the folder, and how many bytes copies may take, for this process and all that it starts; None: as it was."""
    if folder is not None:
        os.environ[FOLDER] = str(folder)
    if limit is not None:
        os.environ[LIMIT] = f"{limit / 10**6:f}MB"


def cache_folder() -> Path | None:
    """Return where conversions and copies are kept: $PENULT_CACHE, $XDG_CACHE_HOME/penult or ~/.cache/penult.

    None if none of these is known: no variable is set, not even $HOME, and the system's list of users lacks this one.
    """
    if named := os.environ.get(FOLDER):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penult"
    except RuntimeError:
        return None


def place_of(kind: str, key: str, name: str = "") -> Path:
    """Return where the file or folder of some kind under a key is kept: an absolute path that ends in ``name``."""
    return _root() / kind / hashlib.sha256(key.encode()).hexdigest()[:32] / name


def kept(place: Path, fetch: Callable[[Path], object]) -> Path:
    """Return a place, see ``place_of``, at which is the file that ``fetch`` wrote, once.

    Raises:
        StoreError: it cannot be written; what ``fetch`` raises.
    """
    try:
        if not place.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=place.parent) as folder:
                fetch(made := Path(folder, place.name))
                made.replace(place)
        os.utime(place)
    except OSError as error:
        raise StoreError(trouble(error, place)) from error
    return place


def has_room(size: int) -> bool:
    """Return whether copies of ``size`` bytes more fit, after those used longest ago have gone if need be.

    Raises:
        UsageError: $PENULT_CACHE_LIMIT is no amount such as 20GB.
    """
    _root().mkdir(parents=True, exist_ok=True)
    disk = os.statvfs(_root())
    told = os.environ.get(LIMIT)
    limit = memory(told) if told else int(SHARE * disk.f_blocks * disk.f_frsize)
    if size > min(limit, disk.f_bavail * disk.f_frsize):
        return False
    there = sorted(_copies())
    over = sum(each for _, each, _ in there) + size - limit
    for used, each, path in there:
        if over <= 0 or used > time.time() - IN_USE:
            break
        with suppress(OSError):
            path.unlink()
            over -= each
            path.parent.rmdir()
    return over <= 0


def _root() -> Path:
    return (cache_folder() or Path(tempfile.gettempdir(), "penult")).absolute()


def _copies() -> Iterator[tuple[float, int, Path]]:
    """Yield when each copy was used last, its bytes and its path; also what dead downloads have left."""
    for parent, _, names in os.walk(_root() / OBJECTS):
        for path in (Path(parent, name) for name in names):
            with suppress(OSError):  # another process may remove some
                found = path.stat()
                yield found.st_mtime, found.st_size, path
