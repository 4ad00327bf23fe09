"""A handful of rotten files; making the store that they are in takes most of the time."""

from __future__ import annotations

from pathlib import Path

from faults import play_each, rot

TRIALS = (
    "intact",
    "store: flip manifest",
    "store: zero catalog",
    "store: flip labels",
    "store: swap ledger",
    "store: short head",
    "pending: half rows",
    "0: ",
)


def test_rot(tmp_path: Path) -> None:
    every = list(rot.faults(seed=0, count=1))
    chosen = [next((name, trial) for name, trial in every if name.startswith(words)) for words in TRIALS]
    chosen.append(next((name, trial) for name, trial in reversed(every) if name.startswith("one bit")))  # of a view
    play_each(chosen, tmp_path)
