"""Find the likely cause when none of the files that a manifest names exists: guesses are tried on the disk."""

# ruff: noqa: PTH100, PTH110, PTH116, PTH118, PTH120, PTH122

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from itertools import islice
from urllib.parse import unquote

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MAX_FOLDERS = 100


def why_missing(examples: list[tuple[str, str]], folder: str) -> str:
    """Return the likely cause in words.

    Args:
        examples: (path as written, path as looked for) of at least one row.
        folder: the manifest's folder, in which relative paths begin.
    """
    for written, path in examples:
        if cause := next(_causes(written, path, folder), None):
            return cause
    written, path = examples[0]
    if "\\" in written:
        return f"the paths hold backslashes, as on Windows, such as {written!r}; write them with /"
    return f"{path!r} for one; relative paths begin in the manifest's folder"


def _causes(written: str, path: str, folder: str) -> Iterator[str]:
    """Yield the causes that explain why a file was not found, likeliest first."""
    try:
        os.stat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            yield f"{path!r} cannot be read ({error.strerror})"
    except ValueError:  # a NUL in the name
        return
    if written.startswith("file://"):
        return
    slashed = written.replace("\\", "/")
    if slashed != written and os.path.exists(os.path.join(folder, slashed)):
        yield f"the paths hold backslashes, as on Windows; write {written!r} as {slashed!r}"
    if written != written.strip() and os.path.exists(os.path.join(folder, written.strip())):
        yield f"there are blanks around the paths, as in {written!r}"
    for extension in EXTENSIONS:
        for ending in (extension, extension.upper()):
            if os.path.exists(path + ending):
                yield f"the paths lack their extension; {path + ending!r} is there"
            other = os.path.splitext(path)[0] + ending
            if os.path.exists(other):
                yield f"the paths have another extension than the files; {other!r} is there"
    if unquote(written) != written and os.path.exists(os.path.join(folder, unquote(written))):
        yield f"the paths are percent-encoded; write {written!r} as {unquote(written)!r}"
    for other in _other_places(slashed, folder):
        if os.path.exists(other):
            yield f"relative paths begin in the manifest's folder, {folder!r}; {written!r} is there as {other!r}"


def _other_places(written: str, folder: str) -> Iterator[str]:
    """Yield where a file may be: below the current folder, one folder up or down, or without its first folders."""
    yield os.path.abspath(written)
    yield os.path.join(os.path.dirname(folder), written)
    try:
        with os.scandir(folder) as items:
            below = sorted(item.path for item in islice(items, MAX_FOLDERS) if item.is_dir())
    except OSError:
        below = []
    parts = [part for part in written.split("/") if part]
    for begin in range(len(parts)):
        rest = os.path.join(*parts[begin:])
        yield from (os.path.join(place, rest) for place in [folder, *below])
