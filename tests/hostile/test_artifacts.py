"""A handful of the hostile stores and artifacts; all of them: ``make faults``."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from hostile import artifacts as hostile

NAMES = [
    f"{hostile.RUN} deep",
    f"{hostile.BACKBONE} half a character",
    f"{hostile.BEGUN} a number",
    f"{hostile.NOTE} of 1 GB",
    f"{hostile.ENTRY} a pipe",
    f"{hostile.RESULT} a key twice",
    "head.npz pickled objects",
    "head.npz a size that is not true",
    "head.npz an absurd shape",
    "head.npz a name that leads out",
    "journal rows outside",
    "journal a fragment from the root",
    "journal a bit of the rows",
    "journal a bit of the plan",
    "journal the same once more",
    "journal names for SQL",
    "link journals",
    "link journal",
    "newer runs/20260102T000000000000Z-train/head.json",
    "checkpoint pickled objects",
    "checkpoint a history of numbers",
    "weights pickled, of PyTorch",
    "weights a pickle that grows",
    "tar members",
]


@pytest.mark.parametrize("name", NAMES)
def test_hostile(tmp_path: Path, name: str) -> None:
    dict(hostile.faults(0, 0))[name](tmp_path)


def test_the_battery_would_notice(tmp_path: Path) -> None:
    """The payload does run where it is unpickled, and what it does is seen; so is memory."""
    hostile.store_in(tmp_path)
    data = pickle.dumps(hostile.Payload(tmp_path / "outside" / "ran"))
    with pytest.raises(AssertionError, match="outside/ran"), hostile.harmless(tmp_path):
        pickle.loads(data)
    with pytest.raises(MemoryError), hostile.harmless(tmp_path):
        bytearray(2 * hostile.MEMORY)
