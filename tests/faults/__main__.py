"""Run the whole battery: ``cd tests && python -m faults --seed 0 --count 200 --only kills disk``.

Exit code 1 where a fault was not survived, whose folder is kept and named, or where no trial was asked for.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import pkgutil
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from types import ModuleType

import faults
import hostile
from faults import play

SECONDS_A_LINE = 30


def run(part: str, asked: argparse.Namespace, folder: Path) -> Counter[str]:
    """Play the faults of a part that were asked for; return how many came to what."""
    faults_of = parts()[part].faults(asked.seed, asked.count)
    outcomes: Counter[str] = Counter()
    said: set[str] = set()
    began = told = time.monotonic()
    # spawn: lance does not survive a fork
    with ProcessPoolExecutor(asked.jobs, multiprocessing.get_context("spawn")) as pool:
        trials = {pool.submit(play, trial, folder): name for name, trial in faults_of if asked.match in name}
        for future in as_completed(trials):
            try:
                outcome, message = future.result()
            except Exception as error:  # the trial took its process with it
                outcome, message = "lost", repr(error)
            outcomes[outcome] += 1
            if outcome == "lost":
                print(f"\n--- LOST {part}: {trials[future]} (seed {asked.seed})\n{message}", flush=True)
            elif message and message not in said:
                said.add(message)
                print(f"{part}: {trials[future]} skipped: {message}", flush=True)
            if time.monotonic() - told > SECONDS_A_LINE:
                told = time.monotonic()
                print(f"{part}: {outcomes.total()} of {len(trials)} after {told - began:.0f} s", flush=True)
    return outcomes


@cache
def parts() -> dict[str, ModuleType]:
    """The modules with a ``faults``, by their own names."""
    found = [
        importlib.import_module(f"{package.__name__}.{module.name}")
        for package in (faults, hostile)
        for module in pkgutil.iter_modules(package.__path__)
        if not module.name.startswith(("test_", "__"))
    ]
    return {module.__name__.partition(".")[2]: module for module in found if callable(getattr(module, "faults", None))}


def main() -> int:
    """Parse, run each part, print the table."""
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--count", type=int, default=200, help="random trials a part, beside its fixed list")
    parser.add_argument("--only", nargs="+", metavar="PART", help="by default every part")
    parser.add_argument("--match", metavar="TEXT", default="", help="only trials with this in their names")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trials at a time")
    asked = parser.parse_args()
    folder, table = Path(tempfile.mkdtemp(prefix="faults-")), []
    for part in asked.only or parts():
        began = time.monotonic()
        outcomes = run(part, asked, folder)
        table.append((part, outcomes, time.monotonic() - began))
    total = sum((outcomes for _, outcomes, _ in table), Counter[str]())
    columns = ("tried", "survived", "skipped", "seconds")
    print(f"\nseed {asked.seed}, count {asked.count}\n{'part':<12}" + "".join(f"{name:>10}" for name in columns))
    for part, outcomes, seconds in [*table, ("total", total, sum(seconds for *_, seconds in table))]:
        tried = outcomes["survived"] + outcomes["lost"]
        print(f"{part:<12}{tried:>10}{outcomes['survived']:>10}{outcomes['skipped']:>10}{seconds:>10.0f}")
    if not total["lost"]:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if total["lost"] or not total else 0


if __name__ == "__main__":
    sys.exit(main())
