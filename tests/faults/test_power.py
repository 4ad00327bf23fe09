"""A handful of power cuts, and the model of the disk that they come from."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from faults import play_each, power
from faults.replay import Disk, Image, damage, read
from faults.trace import AT_END, Change, traced

WHOLE = b"12345678"
CAREFUL = [Change("create", "a"), Change("write", "a", data=WHOLE), Change("fsync", "a"), Change("fsync", ".")]
RENAMED = [*CAREFUL, Change("rename", "a", "b")]
MOVED = [*CAREFUL, Change("mkdir", "c"), Change("rename", "a", "c/a")]
LINKED = [*CAREFUL, Change("mkdir", "c"), Change("link", "a", "c/a"), Change("fsync", "c")]


@pytest.mark.parametrize(
    ("changes", "names_lost", "names_there", "unsafe"),
    [
        (CAREFUL, {"a": WHOLE}, {"a": WHOLE}, []),
        (CAREFUL[:3], {}, {"a": WHOLE}, ["a"]),
        (CAREFUL[:2] + CAREFUL[3:], {"a": WHOLE[:4]}, {"a": WHOLE[:4]}, ["a"]),
        ([*CAREFUL, Change("write", "a", at=AT_END, data=b"9a")], {"a": b"12345"}, {"a": b"12345"}, ["a"]),
        ([*CAREFUL, Change("truncate", "a"), Change("fsync", "a")], {"a": b""}, {"a": b""}, []),
        (RENAMED, {"a": WHOLE}, {"b": WHOLE}, ["a", "b"]),
        ([*RENAMED, Change("fsync", ".")], {"b": WHOLE}, {"b": WHOLE}, []),
        (MOVED, {"a": WHOLE}, {"c": None, "c/a": WHOLE}, ["a", "c", "c/a"]),
        (LINKED, {"a": WHOLE}, {"a": WHOLE, "c": None, "c/a": WHOLE}, ["c"]),
        (
            [*LINKED, Change("unlink", "a"), Change("fsync", ".")],
            {"c": None, "c/a": WHOLE},
            {"c": None, "c/a": WHOLE},
            [],
        ),
    ],
)
def test_what_a_cut_leaves(changes: list[Change], names_lost: Image, names_there: Image, unsafe: list[str]) -> None:
    """Names that were not flushed are lost or there; bytes that were not are cut in half."""
    disk, half = Disk(changes, {}), damage("cut", random.Random())
    assert disk.after_cut(lambda _: False, half) == names_lost
    assert disk.after_cut(lambda _: True, half) == names_there
    assert disk.unflushed() == unsafe


def test_a_trace_tells_all(tmp_path: Path) -> None:
    """Also of several threads, of appended and sparse files, and of names in open folders."""
    script = """
import os, shutil, sys, threading
from pathlib import Path
here = Path(sys.argv[1])
def work(number):
    folder = here / f"{number} é, \\"x\\""
    folder.mkdir()
    for name in "ab":
        with (folder / name).open("wb") as file:
            for word in range(50):
                file.write(bytes([number, word]) * 1000)
            file.flush()
            os.fsync(file.fileno())
    with (folder / "a").open("ab") as file:
        file.write(b"more")
    with (folder / "b").open("r+b") as file:
        file.seek(200_000)
        file.write(b"end")
        file.truncate(200_001)
    (folder / "b").rename(here / f"b{number}")
    os.link(here / f"b{number}", folder / "c")
    (folder / "d").mkdir()
    (folder / "d" / "gone").touch()
    shutil.rmtree(folder / "d")
threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
    (tmp_path / "here").mkdir()
    changes = traced([sys.executable, "-c", script, str(tmp_path / "here")], [], tmp_path / "here", tmp_path)
    assert Disk(changes, {}).now() == read(tmp_path / "here")
    assert sum(change.kind == "fsync" for change in changes) == 8


TRIALS = (
    "after link of store/catalog.lance/_versions/18446744073709551613.manifest, names there, bytes zeroed",
    "after link of store/labels.lance/_versions/18446744073709551612.manifest, names some, bytes mixed",
    "after rename of store/penult.json, names there, bytes zeroed",
    "cut at the end of story, command 1, lost below store/staging",
    "store/penult.json zeroed",
    "labels.arrow cut",
)


def test_power_is_cut(tmp_path: Path) -> None:
    """What was acknowledged is safe; and a few cuts. Making the recording takes most of the time."""
    recording = power.recorded("story")
    every = [*power.around(recording, seed=0), *power.spoils(recording)]
    safe = [(name, trial) for name, trial in every if name.startswith("all is safe")]
    assert len(safe) > 8  # of two shards at once, one flush may tell of both
    cuts = [next((name, trial) for name, trial in every if words in name) for words in TRIALS]
    play_each(safe + cuts, tmp_path)
