"""A handful of the disks that are full, broken or read-only."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults import disk


@pytest.mark.parametrize(("name", "room", "files"), [("embed", 100 * disk.KB, 500), ("label", disk.MAX_BYTES, 3)])
def test_the_disk_is_full(tmp_path: Path, name: str, room: int, files: int) -> None:
    disk.full(tmp_path, name, room, files)


def test_files_may_not_grow(tmp_path: Path) -> None:
    disk.limited(tmp_path, "train", size=1500)


def test_a_flush_fails(tmp_path: Path) -> None:
    disk.injected(tmp_path, "label", "fsync", "EIO", nth=3)


def test_the_store_is_read_only(tmp_path: Path) -> None:
    disk.read_only(tmp_path, "label", "modes")


def test_leaves_what_it_is_told(tmp_path: Path) -> None:
    """The disk of the trials has no more room than they say."""
    (tmp_path / "disk").mkdir()
    with disk.small_disk(tmp_path / "disk") as (_, seen):
        disk.leave(seen, room=8 * disk.KB, files=2)
        with pytest.raises(OSError, match="No space left"):
            (seen / "large").write_bytes(bytes(12 * disk.KB))
        (seen / "large").write_bytes(bytes(8 * disk.KB))
        (seen / "second").touch()
        with pytest.raises(OSError, match="No space left"):
            (seen / "third").touch()
