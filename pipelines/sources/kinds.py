"""The table of the kinds of sources: which one lists what is at a location."""

from __future__ import annotations

from pipelines.sources.base import SourceKind
from pipelines.sources.folders import Folder
from pipelines.sources.manifests import Manifest
from pipelines.sources.prefixes import Prefix
from pipelines.sources.tables import Tables, TablesBelow
from pipelines.sources.webdataset import Tars

# The last one is asked first: a folder may be called photos.tar, and may hold nothing but tables; what else is in a
# bucket is a prefix, which may hold nothing but tables too.
_KINDS: dict[str, SourceKind] = {
    kind.name: kind for kind in (Prefix(), TablesBelow(), Manifest(), Tars(), Folder(), Tables())
}


def register(kind: SourceKind) -> None:
    """Add a kind of source, which is asked before the others; or replace the one of the same name."""
    _KINDS[kind.name] = kind


def named(name: str) -> SourceKind:
    """Return the kind of this name."""
    return _KINDS[name]


def of_location(location: str) -> SourceKind | None:
    """Return the kind of the source at a location; None if no kind owns it.

    Raises:
        SourceError: it is of some kind, and cannot be used as it is.
    """
    return next((kind for kind in reversed(_KINDS.values()) if kind.owns(location)), None)


def endings() -> list[str]:
    """Return the endings of all locations that are known by their ending."""
    return [ending for kind in _KINDS.values() for ending in kind.endings]
