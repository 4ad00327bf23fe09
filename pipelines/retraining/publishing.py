"""Publish a head: export it into a folder per version, and point the link ``current`` at the newest in one rename.

Whoever opens ``current/…`` at any moment finds a whole version. A publication that was killed goes on when it is run
again.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from featurestore.errors import StoreError, UsageError
from featurestore.storage.base import storage_of
from featurestore.storage.files import (
    delete,
    exists,
    flush,
    is_file,
    is_folder,
    is_link,
    is_plain_name,
    listed,
    make_folder,
    read_json,
)
from featurestore.storage.local import refusals
from pipelines.export import DESCRIPTION, LABELS, export
from pipelines.options import ExportOptions
from pipelines.retraining.options import PublishOptions

CURRENT = "current"
UNFINISHED = ".unfinished"  # a folder for all that is not whole yet, or no longer
MIN_KEPT = 2  # who has just opened a version goes on reading it when the next one takes its place


def publish(
    store: str | Path, head_id: str, options: PublishOptions, name: str, keep: int, say: Callable[[str], None]
) -> str | None:
    """Export a head into ``options.to/name``, point ``options.to/current`` at it, and remove old versions.

    A whole export of the same head in the same format is not made again. If something else has the name, the version
    is called ``name-2``, and so on.

    Args:
        store: the store's folder.
        head_id: the head to publish.
        options: where to, and in which format; nothing is published if there is no folder in ``to``.
        name: of the version's folder.
        keep: how many versions to keep, the current one among them; at least two are. Folders that are no exports are
            left alone.
        say: called with a line for people.

    Returns:
        The version's folder; None if nothing is published.

    Raises:
        UsageError: ``to`` is no folder, or ``to/current`` is not a link that penult made.
        StoreError: the disk refuses.
        PenultError: ``pipelines.export.export`` refuses, for example since the model differs from the head.
    """
    if options.to is None:
        return None
    to = Path(options.to)
    if exists(to) and not is_folder(to):
        raise UsageError(f"Expected: a folder to publish in. Got: {to}, a file.")
    _target(to)
    delete(to / UNFINISHED)
    version = _version(to, name, head_id, options.format)
    if not exists(version):
        fresh = to / UNFINISHED / version.name
        make_folder(fresh.parent)
        try:
            export(store, fresh, ExportOptions(options.format), head_id, say)
            storage_of(to).move(fresh, version)
        finally:
            delete(to / UNFINISHED)
    if _target(to) != version:
        _point_at(version)
        say(f"Published: {version}")
    _remove_old(to, max(keep, MIN_KEPT))
    return str(version)


def published(to: str | Path) -> str | None:
    """Return the id of the head that ``to/current`` serves; None if it serves none of penult's."""
    with suppress(UsageError):
        if target := _target(Path(to)):
            return _description(target).get("head_id")
    return None


def _target(to: Path) -> Path | None:
    """Return the version that ``current`` points at, which may be gone; None if there is no such link.

    Raises:
        UsageError: it is no link, or one that leads elsewhere.
    """
    current = to / CURRENT
    if not os.path.lexists(current):
        return None
    target = str(current.readlink()) if is_link(current) else ""
    if not is_plain_name(target):
        raise UsageError(
            f"Expected: {current}, the link to the newest version. Got: {target or 'no link'}, which is not penult's: "
            "move it away, or publish to another folder."
        )
    return to / target


def _version(to: Path, name: str, head_id: str, format: str) -> Path:
    """Return the folder that has the whole export of a head in a format, or the first name that is free."""
    for number in itertools.count(1):
        version = to / (name if number == 1 else f"{name}-{number}")
        told = _description(version)
        if not os.path.lexists(version) or (told.get("head_id"), told.get("format")) == (head_id, format):
            return version
    raise AssertionError


def _description(version: Path) -> dict[str, Any]:
    """Return what a version says of itself; nothing if it is not a whole export."""
    try:
        told = dict(read_json(version / DESCRIPTION))
        whole = is_plain_name(told["model"]) and exists(version / told["model"]) and is_file(version / LABELS)
    except (StoreError, KeyError, TypeError, ValueError):
        return {}
    return told if whole and is_plain_name(told.get("head_id")) else {}


def _point_at(version: Path) -> None:
    """Make ``current`` lead to a version: a new link takes the place of the old one in one rename."""
    to, fresh = version.parent, version.parent / UNFINISHED / CURRENT
    make_folder(fresh.parent)
    with refusals(fresh):
        fresh.symlink_to(version.name)
        fresh.replace(to / CURRENT)
    flush(to)


def _remove_old(to: Path, keep: int) -> None:
    """Remove the oldest versions beyond ``keep``, of which the current one is always one.

    Each leaves its place in one rename, so that a half-removed version is never taken for another's folder.
    """
    current = _target(to)
    versions = [Path(path) for path in listed(to) if not is_link(path) and path != current and _description(Path(path))]
    versions.sort(key=lambda version: ((version / DESCRIPTION).stat().st_mtime_ns, version.name), reverse=True)
    for version in versions[keep - 1 :]:
        storage_of(to).move(version, to / UNFINISHED / version.name)
    delete(to / UNFINISHED)
