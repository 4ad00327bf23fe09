"""List a prefix of a bucket as a folder: what stands between slashes in the keys are its sub-folders."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import NamedTuple
from urllib.parse import quote

from pipelines.concurrency import read_ahead
from pipelines.sources.base import Entry, SourceKind
from pipelines.sources.levels import CLASS, SPLIT, Look, is_left_out, levels_of, nohash_group
from pipelines.sources.listing import SPLITS, Listing, has_image_name, is_aside
from pipelines.sources.metadata import NAMES, metadata_in, with_metadata
from pipelines.sources.objects import GLANCE, Bucket, bucket_of


class Prefix(SourceKind):
    """A bucket, or what lies below a prefix of its keys."""

    name = "prefix"
    looked_for = "image files (.jpg, .png, .webp, .gif, .bmp, .tif …), below prefixes named after their class"

    def owns(self, location: str) -> bool:
        """Return whether it is in a bucket and is not named as an image is."""
        return bucket_of(location) is not None and not has_image_name(location.rpartition("/")[2])

    def entries(self, listing: Listing) -> Iterator[Entry]:
        """Yield the images below the prefix."""
        return list_prefix(listing)


def list_prefix(listing: Listing) -> Iterator[Entry]:
    """Yield the images below a prefix in one stream, in the order of the server; see ``levels`` for the classes.

    An empty object without an extension stands for a folder, as consoles make them, and does not count. Metadata files
    are looked for above the classes only, as each look is a request.

    Raises:
        SourceError: the bucket is not there, cannot be reached, or may not be listed.
    """
    bucket = bucket_of(listing.location)
    assert bucket is not None
    root = bucket.source_uri(listing.location)
    look = _Keys(bucket)
    levels = levels_of(root, *look.first(root), look, listing)

    def file_in(folder: str) -> str | None:
        return look.metadata_in(folder) if folder.removeprefix(root).count("/") < len(levels) else None

    keys = read_ahead(bucket.listed(root), GLANCE)
    yield from with_metadata(_images(keys, root, levels, listing), listing, root, file_in)


def _images(keys: Iterator[tuple[str, int, int]], root: str, levels: list[str], listing: Listing) -> Iterator[Entry]:
    folder = _Folder("", root + "/", None, None, False)
    aside = "\0"  # the last folder that was left out
    unread = None  # the first metadata file that was not looked for
    for key, size, token in keys:
        path, _, name = key.rpartition("/")
        if path != folder.path:
            folder = _folder(path, root, levels)
            if folder.aside and not f"{path}/".startswith(aside):
                aside = _counted_aside(path, listing)
        if folder.aside or (not size and "." not in name):
            continue
        if listing.is_image(name):
            group = nohash_group(folder.label, name)
            yield Entry(folder.uri + quote(name), size, token, -1, folder.label, folder.split, group)
        elif name in NAMES and path and path.count("/") + 1 >= len(levels):
            unread = unread or key
    if unread:
        listing.notes.append(
            f"{unread!r} was not read: in a bucket, metadata files are looked for at the top and in the folders of "
            "splits."
        )


class _Folder(NamedTuple):
    path: str  # below the root
    uri: str
    label: str | None
    split: str | None
    aside: bool


def _folder(path: str, root: str, levels: list[str]) -> _Folder:
    named = dict(zip(levels, path.split("/"), strict=False)) if path else {}
    split = SPLITS.get(named.get(SPLIT, "").lower())
    uri = f"{root}/{quote(path)}/" if path else root + "/"
    return _Folder(path, uri, named.get(CLASS), split, any(map(is_aside, path.split("/"))))


def _counted_aside(path: str, listing: Listing) -> str:
    """Count the first folder of a path that is left out; return it with a slash."""
    parts = path.split("/")
    first = next(i for i, part in enumerate(parts) if is_left_out(part, listing))
    return "/".join(parts[: first + 1]) + "/"


class _Keys(Look):
    """Looks at the first keys below a prefix, and at all names of a level only where these leave a doubt."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._metadata_in = cache(metadata_in)

    def first(self, root: str) -> tuple[bool, list[str]]:
        """Return whether there are images right below the root, and the folders that count."""
        seen = self._glance(root)
        if not any("/" in key for key in seen):
            return any(map(has_image_name, seen)), []
        names, folders = self._bucket.level(root)
        return any(map(has_image_name, names)), self._that_count(folders)

    def below(self, folder: str, name: str) -> str:
        """Return where a folder in a folder is."""
        return f"{folder}/{quote(name)}"

    def peek(self, folder: str) -> list[str] | None:
        """Return the names of the folders in a folder; None if it holds images."""
        if any("/" not in key and has_image_name(key) for key in self._glance(folder)):
            return None
        names, folders = self._bucket.level(folder)
        return None if any(map(has_image_name, names)) else self._that_count(folders)

    def holds_folders(self, folder: str) -> bool:
        """Return whether there are folders in a folder that count."""
        seen = self._glance(folder)
        if any("/" in key and not is_aside(key.partition("/")[0]) for key in seen):
            return True
        return len(seen) == GLANCE and bool(self._that_count(self._bucket.level(folder)[1]))

    def metadata_in(self, folder: str) -> str | None:
        """Return the metadata file in a folder, asked for once."""
        return self._metadata_in(folder)

    def _glance(self, uri: str) -> list[str]:
        return [key for key, _, _ in islice(self._bucket.listed(uri), GLANCE)]

    @staticmethod
    def _that_count(folders: list[str]) -> list[str]:
        return sorted(folder for folder in folders if not is_aside(folder))
