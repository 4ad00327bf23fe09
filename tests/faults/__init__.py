"""The fault battery: every fault that a store may meet, and after each one the same independent check.

A part is a module here with ``faults(seed, count)``, which yields (name, trial). ``trial(folder)`` plays one fault in
an empty folder and raises AssertionError, saying what was lost, where penult does not survive it. A fixed list is
always yielded; ``count`` is how many random trials come on top. Trials can be pickled and know nothing of each other.

``python -m faults`` in tests/ runs them all; ``test_<part>.py`` runs a handful under pytest.
"""

from __future__ import annotations

import shutil
import tempfile
import traceback
import unittest
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.util import Finalize
from pathlib import Path

Trial = Callable[[Path], None]
Faults = Iterator[tuple[str, Trial]]


def needs(program: str) -> None:
    """Skip a trial, under pytest too, where a program is not installed."""
    if shutil.which(program) is None:
        raise unittest.SkipTest(f"{program} is not installed")


def own_folder() -> Path:
    """A folder that is there until this process ends, a forked one too."""
    folder = Path(tempfile.mkdtemp(prefix="faults-")).resolve()
    Finalize(None, shutil.rmtree, (folder,), {"ignore_errors": True}, exitpriority=0)
    return folder


def play_each(trials: Iterable[tuple[str, Trial]], folder: Path) -> None:
    """Play some faults, each in a sub-folder of its own; the first that is not survived names itself."""
    for number, (name, trial) in enumerate(trials):
        own = folder / str(number)
        own.mkdir()
        try:
            trial(own)
        except AssertionError as error:
            raise AssertionError(name) from error


def play(trial: Trial, folder: Path) -> tuple[str, str]:
    """Play one fault in a new sub-folder; return what came of it and what there is to say."""
    folder = Path(tempfile.mkdtemp(dir=folder))
    try:
        trial(folder)
    except unittest.SkipTest as reason:
        shutil.rmtree(folder, ignore_errors=True)
        return "skipped", str(reason)
    except BaseException:
        return "lost", f"{traceback.format_exc()}its folder: {folder}"
    shutil.rmtree(folder, ignore_errors=True)
    return "survived", ""
