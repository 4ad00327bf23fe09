"""The cache folder of this machine: copies and conversions that cost only time to make again."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from featurestore.errors import StoreError, trouble

OBJECTS = "objects"


def cache_folder() -> Path | None:
    """Return where conversions and copies are kept: $PENULT_CACHE, $XDG_CACHE_HOME/penult or ~/.cache/penult.

    None if none of these is known: no variable is set, not even $HOME, and the system's list of users lacks this one.
    """
    if named := os.environ.get("PENULT_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penult"
    except RuntimeError:
        return None


def kept(key: str, name: str, fetch: Callable[[Path], object]) -> Path:
    """Return the path of a file that ``fetch`` wrote under a key, once; the file is called ``name``.

    Raises:
        StoreError: it cannot be written; what ``fetch`` raises.
    """
    root = cache_folder() or Path(tempfile.gettempdir(), "penult")
    path = root / OBJECTS / hashlib.sha256(key.encode()).hexdigest()[:32] / name
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                fetch(made := Path(folder, name))
                made.replace(path)
    except OSError as error:
        raise StoreError(trouble(error, path)) from error
    return path.absolute()
