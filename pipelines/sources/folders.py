"""List a folder: its sub-folders are the classes, possibly below train, val and test or below a wrapper folder."""

# ruff: noqa: PTH100, PTH110, PTH116, PTH118

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote_from_bytes

from featurestore.errors import SourceError
from pipelines.sources import uris
from pipelines.sources.base import Entry, SourceKind
from pipelines.sources.listing import SPLITS, Listing, has_image_name, is_aside
from pipelines.sources.metadata import has_metadata, with_metadata
from pipelines.sources.uris import mode_of, printable, uri_of

MAX_WRAPPERS = 4
WRAPPER, SPLIT, CLASS = "wrapper", "split", "class"  # what the sub-folders of a level are

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
        return with_metadata(list_folder(listing), listing)


def list_folder(listing: Listing) -> Iterator[Entry]:
    """Yield each folder's files by name, then those of its sub-folders.

    The sub-folders of the first level are the classes; whatever lies deeper is of the same class. Two things may lie
    above the classes:

    - A wrapper: the only sub-folder of a folder without images. It holds sub-folders and no images itself.
    - Splits: sub-folders that are all called train, val or test (or training, validation, valid, dev, testing, in any
      case). They name two or three splits, there are no images beside them, and at least one of them has sub-folders,
      or a file says what the images in them are, see ``metadata``.
      An image directly in a split's folder belongs to that split and has no label.

    Hidden folders and those of ``listing.SYSTEM_FOLDERS`` are left out and do not count for these rules.

    Raises:
        SourceError: the folder itself cannot be read.
    """
    root = os.path.abspath(listing.location)
    try:
        names = _scan(root)
    except OSError as error:
        raise SourceError(f"The folder {root!r} cannot be read: {error.strerror}.") from error
    levels = _levels(root, names, listing)
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
                if not _is_left_out(name, listing):
                    below.append(_below(folder, name, role, above))
            elif listing.is_image(name):
                size, mtime_ns = uris.size_and_mtime(inside + name)
                group = _nohash_group(folder.label, name)
                uri = prefix + quote_from_bytes(os.fsencode(name))
                yield Entry(uri, size, mtime_ns, -1, folder.label, folder.split, group)
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


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:
        return False


def _is_left_out(folder: str, listing: Listing) -> bool:
    if is_aside(folder):
        listing.ignored["hidden folder" if folder.startswith(".") else "system folder"] += 1
        return True
    return False


def _nohash_group(label: str | None, name: str) -> str | None:
    """Return CLASS/NAME with the name before ``_nohash_``; None for other names."""
    before, mark, _ = name.partition("_nohash_")
    return f"{label or ''}/{printable(before)}" if mark else None


# --- what lies above the classes


def _levels(root: str, names: _Names, listing: Listing) -> list[str]:
    """Return what the sub-folders of each level are (WRAPPER, SPLIT or CLASS), from the root down."""
    folder, levels = root, list[str]()
    has_pictures, folders = _sort_out(names)
    while not has_pictures and len(folders) == 1 and len(levels) < MAX_WRAPPERS:
        child = os.path.join(folder, folders[0])
        inside = _peek(child)
        if not inside:
            break
        listing.notes.append(
            f"{printable(folders[0])!r} is the only folder in {folder!r} and was looked through: "
            "the folders in it are what counts."
        )
        levels.append(WRAPPER)
        folder, folders = child, inside
    if listing.hints.split_folders and _are_splits(folder, folders, has_pictures, listing):
        levels.append(SPLIT)
    return [*levels, CLASS]


def _sort_out(names: _Names) -> tuple[bool, list[str]]:
    """Return whether there are images, and the folders that count; a LOST item called train, val or test counts."""
    folders = [
        name
        for kind, name in names
        if (kind == FOLDER and not is_aside(name)) or (kind == LOST and name.lower() in SPLITS)
    ]
    return any(kind == FILE and has_image_name(name) for kind, name in names), folders


def _peek(folder: str) -> list[str] | None:
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


def _are_splits(folder: str, names: list[str], has_pictures: bool, listing: Listing) -> bool:
    """Return whether all folders here are splits; in doubt they are classes, and a note says why."""
    named = [name for name in names if name.lower() in SPLITS]
    splits = {SPLITS[name.lower()] for name in named}
    below = [os.path.join(folder, name) for name in named]
    deep = any(map(_holds_folders, below)) or any(map(has_metadata, [folder, *below]))
    if len(splits) < 2:
        return False
    if has_pictures:
        why = "there are images beside them"
    elif len(named) < len(names):
        why = f"there are other folders beside them, such as {next(n for n in names if n not in named)!r}"
    elif not deep:
        why = "there are no class folders in them"
    else:
        said = ", ".join(repr(name) for name in named)
        listing.notes.append(f"The folders {said} are taken for splits; --no-split-folders takes them for classes.")
        return True
    listing.notes.append(f"Taken for classes, not for splits: {', '.join(map(repr, named))}, since {why}.")
    return False


def _holds_folders(folder: str) -> bool:
    try:
        with os.scandir(folder) as items:
            return any(_is_folder(item) and not is_aside(item.name) for item in items)
    except OSError:  # the listing reports it later
        return False
