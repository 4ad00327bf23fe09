"""Folders that commands make for users: whole or not at all."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from featurestore.errors import UsageError
from featurestore.storage.files import flush


def check_new(to: Path) -> None:
    """Make the folder above a folder that is to be made.

    Raises:
        UsageError: there is anything under its name already, or the one above cannot be made.
    """
    if to.exists() or to.is_symlink():
        raise UsageError(f"{to} exists already: name a folder that does not.")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{to.parent} cannot be made: {error.strerror}.") from error


@contextlib.contextmanager
def whole_folder(to: Path) -> Iterator[Path]:
    """Yield a folder to fill; after the block it is flushed and gets its name, after an error nothing is left of it."""
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}-") as temporary:
        fresh = Path(temporary) / to.name
        fresh.mkdir()
        yield fresh
        for path in (fresh, *fresh.rglob("*")):
            flush(path)
        fresh.rename(to)
        flush(to.parent)
