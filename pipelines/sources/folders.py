"""List a folder: its sub-folders are the classes, possibly below train, val and test or below a wrapper folder."""

# ruff: noqa: PTH100, PTH110, PTH116, PTH118

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote_from_bytes

from featurestore.errors import SourceError
from pipelines.sources import uris
from pipelines.sources.base import Entry, SourceKind
from pipelines.sources.levels import CLASS, SPLIT, Look, is_left_out, levels_of, nohash_group
from pipelines.sources.listing import SPLITS, Listing, has_image_name, is_aside
from pipelines.sources.metadata import metadata_in, with_metadata
from pipelines.sources.uris import mode_of, path_of, printable, uri_of

PLAIN = re.compile(r"[A-Za-z0-9_.~-]+")  # a name that a URI holds as it is: most are, and quoting them takes longer
FILE, FOLDER, LOST = range(3)  # LOST: it cannot be reached, and may be a folder

_Names = list[tuple[int, str]]  # (FILE, FOLDER or LOST; name)


class _Folder(NamedTuple):
    path: str
    label: str | None
    split: str | None
    above: tuple[tuple[int, int], ...]  # the folders that hold it: device and inode


class Folder(SourceKind):
    """A folder of images, with a sub-folder for each class or without."""

    name = "folder"
    looked_for = "image files (.jpg, .png, .webp, .gif, .bmp, .tif …), in sub-folders named after their class"

    def owns(self, location: str) -> bool:
        """Return whether it is a folder."""
        return stat.S_ISDIR(mode_of(location))

    def entries(self, listing: Listing) -> Iterator[Entry]:
        """Yield the images of the folder and of all folders below it."""
        return with_metadata(
            list_folder(listing), listing, uri_of(listing.location), lambda folder: metadata_in(path_of(folder + "/"))
        )


def list_folder(listing: Listing) -> Iterator[Entry]:
    """Yield each folder's files by name, then those of its sub-folders.

    Which sub-folders are classes: see ``levels``.

    Raises:
        SourceError: the folder itself cannot be read.
    """
    root = os.path.abspath(listing.location)
    try:
        names = _scan(root)
    except OSError as error:
        raise SourceError(f"The folder {root!r} cannot be read: {error.strerror}.") from error
    levels = levels_of(root, *_sort_out(names), _Disk(), listing)
    pending = [_Folder(root, None, None, ())]
    while pending:
        folder = pending.pop()
        prefix, inside = uri_of(folder.path).rstrip("/") + "/", folder.path.rstrip("/") + "/"
        try:
            info = os.stat(folder.path)
            here = (info.st_dev, info.st_ino)
            if here in folder.above:
                problem = f"{folder.path!r} links back to a folder above it and was not followed."
                listing.could_not_list(prefix, problem)
                continue
            if folder.above:
                names = _scan(folder.path)
        except OSError as error:
            listing.could_not_list(prefix, f"{folder.path!r} cannot be read: {error.strerror}.")
            continue
        above = (*folder.above, here)
        role = levels[len(folder.above)] if len(folder.above) < len(levels) else None
        below = []
        for kind, name in names:
            if kind != FILE:
                if not is_left_out(name, listing):
                    below.append(_below(folder, name, role, above))
            elif listing.is_image(name):
                size, mtime_ns = uris.size_and_mtime(inside + name)
                group = nohash_group(folder.label, name)
                quoted = name if PLAIN.fullmatch(name) else quote_from_bytes(os.fsencode(name))
                yield Entry(prefix + quoted, size, mtime_ns, -1, folder.label, folder.split, group)
        pending.extend(reversed(below))


def _below(folder: _Folder, name: str, role: str | None, above: tuple[tuple[int, int], ...]) -> _Folder:
    label = printable(name) if role == CLASS else folder.label
    split = SPLITS[name.lower()] if role == SPLIT else folder.split
    return _Folder(os.path.join(folder.path, name), label, split, above)


def _scan(folder: str) -> _Names:
    """Return the names in a folder, files first, sorted.

    Only the names are kept, since a DirEntry is ten times as large.
    """
    names: _Names = []
    with os.scandir(folder) as items:
        for item in items:
            if _is_plain_file(item):  # nearly all are: this saves a third of the time
                names.append((FILE, item.name))
            else:
                names += [(kind, item.name) for kind in _kinds(item)]
    names.sort()
    return names


def _kinds(item: os.DirEntry[str]) -> list[int]:
    """Return what an item is: FILE, FOLDER, LOST, or both FILE and LOST.

    An item that cannot be reached may be a file or a folder. As LOST it is reported as a folder that could not be
    listed, not taken for an empty one.
    """
    try:
        if item.is_dir():
            return [FOLDER]
        if not item.is_symlink():
            return [FILE]
        is_picture = has_image_name(item.name)
        gone = not is_picture and not os.path.exists(item.path)  # a link to nothing
    except OSError as error:
        is_picture = has_image_name(item.name)
        gone = not (is_picture and error.errno == errno.ELOOP)  # a link to itself is not a folder
    if not gone or is_aside(item.name):
        return [FILE]
    return [FILE, LOST] if is_picture else [LOST]


def _is_plain_file(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_file(follow_symlinks=False)
    except OSError:
        return False


# --- looks into folders, for the rules


class _Disk(Look):
    """Looks into folders before they are listed; what cannot be read is reported by the listing later."""

    def below(self, folder: str, name: str) -> str:
        return os.path.join(folder, name)

    def peek(self, folder: str) -> list[str] | None:
        """Return the names of the folders in a folder; None if it holds images or cannot be read."""
        folders = []
        try:
            with os.scandir(folder) as items:
                for item in items:
                    if _is_folder(item):
                        folders += [] if is_aside(item.name) else [item.name]
                    elif has_image_name(item.name):
                        return None
        except OSError:  # the listing reports it later
            return None
        return sorted(folders)

    def metadata_in(self, folder: str) -> str | None:
        return metadata_in(folder)

    def holds_folders(self, folder: str) -> bool:
        try:
            with os.scandir(folder) as items:
                return any(_is_folder(item) and not is_aside(item.name) for item in items)
        except OSError:  # the listing reports it later
            return False


def _sort_out(names: _Names) -> tuple[bool, list[str]]:
    """Return whether there are images, and the folders that count; a LOST item called train, val or test counts."""
    folders = [
        name
        for kind, name in names
        if (kind == FOLDER and not is_aside(name)) or (kind == LOST and name.lower() in SPLITS)
    ]
    return any(kind == FILE and has_image_name(name) for kind, name in names), folders


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:
        return False
