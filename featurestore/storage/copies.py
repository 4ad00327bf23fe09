"""Local copies of the files of a table in a bucket, in a folder that Lance opens as the table itself.

Data, deletion files and manifests are never changed once written, so a copy is kept under the file's URI, its token and
the digest that the table's ledger has; it is compared with that digest once, when it is made. The folder holds links to
the copies, so that they may come and go. Nothing is ever written to a table through it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePath

from featurestore.errors import BucketError, ObjectMissing, StoreError
from featurestore.storage import buckets, cache
from featurestore.storage.base import Wanted

TABLES = "tables"
AT_ONCE = 8


class _Wrong(StoreError):
    """A file's bytes are not those of the ledger."""


def folder_with(table: PurePath, wanted: Mapping[str, Wanted], make: bool) -> Path | None:
    """Return a folder with copies of files of a table, by the same names.

    None if one is missing and none is to be made, if they do not all fit, or if one is not what it should be.

    Raises:
        BucketError: the bucket cannot be reached, or refuses.
    """
    places = {
        name: cache.place_of(cache.OBJECTS, f"{table / name} {one.stat.token} {one.sha256}", PurePath(name).name)
        for name, one in wanted.items()
    }
    missing = [name for name, one in wanted.items() if _size(places[name]) != one.stat.size]
    if missing and not make:
        return None
    try:
        for name in wanted.keys() - missing:
            os.utime(places[name])  # so that it stays
        if missing and not cache.has_room(sum(wanted[name].stat.size for name in missing)):
            return None
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda name: _copy(table / name, wanted[name], places[name]), missing))
        return _linked(table, places)
    except ObjectMissing:
        return None
    except BucketError:
        raise
    except (StoreError, OSError):
        return None


def _copy(path: PurePath, wanted: Wanted, place: Path) -> None:
    def fetch(to: Path) -> None:
        found = buckets.get_file(str(path), to)
        with to.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if found.token != wanted.stat.token or (wanted.sha256 or digest) != digest:
            raise _Wrong(f"{path} is not what it was.")

    with suppress(FileNotFoundError):
        if place.stat().st_size != wanted.stat.size:
            place.unlink()
    cache.kept(place, fetch)


def _linked(table: PurePath, places: Mapping[str, Path]) -> Path:
    """Return the folder, with a link to each copy."""
    folder = cache.place_of(TABLES, str(table))
    for name, place in places.items():
        if _leads_to(link := folder / name) != place:
            link.parent.mkdir(parents=True, exist_ok=True)
            new = link.with_name(f".{os.getpid()}.{link.name}")
            new.unlink(missing_ok=True)
            new.symlink_to(place)
            new.replace(link)
    return folder


def _leads_to(link: Path) -> Path | None:
    with suppress(OSError):
        return link.readlink()
    return None


def _size(path: Path) -> int | None:
    with suppress(OSError):
        return path.stat().st_size
    return None
