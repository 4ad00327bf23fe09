"""Random mutants, each against the tests that run its line: ``python -m mutants --seed 0 --count 200``.

The first run on a state of the code measures which tests run which lines (the whole suite once, under coverage). What
is found is kept in .mutants, so that a campaign that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import compileall
import hashlib
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from functools import cache
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

from mutants.places import Mutant, sample
from mutants.suite import PACKAGES, Suite, measure, statement
from mutants.warm import run_tests

ROOT = Path(__file__).parents[2]
SECONDS_TO_START = 60
"""Of pytest and its imports, at most; a mutant that takes longer than this and four times its tests' time is killed."""
LEFT = ("survived", "uncovered")
OUTCOMES = ("killed", *LEFT, "equivalent")


def state(tree: Path) -> str:
    """A digest of all files but this tool's and what git ignores: other code or other tests, another campaign."""
    digest = hashlib.sha256()
    for name in files(tree):
        if name.startswith("tests/mutants/"):
            continue
        digest.update(name.encode() + b"\0" + (tree / name).read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def files(tree: Path) -> list[str]:
    """The files of a checkout, without what git ignores."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True).stdout
    return [name for name in sorted(set(listed.split("\0"))) if (tree / name).is_file()]


def copy(tree: Path, to: Path) -> Path:
    """A checkout of its own for the mutants of one job."""
    for name in files(tree):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tree / name, to / name)
    # bytecode checked by the source's digest: by their time, two mutants within one second look alike
    compileall.compile_dir(to, quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
    return to


def judge(mutant: Mutant, suite: Suite, tree: Path, seconds: float) -> dict[str, Any]:
    """Write the mutant into ``tree``, run its tests until one fails, take it out again."""
    path = tree / mutant.module
    original = path.read_text()
    before, after = mutant.change(tree)
    told = asdict(mutant) | {"before": before, "after": after}
    if equivalent(told):
        return told | {"outcome": "equivalent"}
    covering = seen = suite.covering(mutant.module, statement(original, mutant.start[0]))
    if not seen:  # coverage sees no line that a thread of another language runs, such as those that Lance writes from
        covering = suite.covering(mutant.module, None)
    tests = suite.chosen(covering, seconds)
    began = time.monotonic()
    path.write_text(mutant.source(tree))
    try:
        failed = fails(tests, tree, SECONDS_TO_START + 4 * suite.seconds(tests))
    finally:
        path.write_text(original)
    return told | {
        "outcome": "killed" if failed else "survived" if seen else "uncovered",
        "by": failed,
        "tests": len(tests),
        "covering": len(covering),
        "limit": seconds,
        "seconds": round(time.monotonic() - began, 1),
    }


def equivalent(told: dict[str, Any]) -> bool:
    """Whether the list of equivalent mutants has it."""
    known = equivalents()
    return any(
        re.search(one["before"], told["before"]) and re.search(one.get("after", ""), told["after"])
        for one in known["kind"]
    ) or any(all(one[key] == told[key] for key in ("module", "before", "after")) for one in known["mutant"])


@cache
def equivalents() -> dict[str, list[dict[str, str]]]:
    """Mutants, and kinds of mutants, that change nothing."""
    return tomllib.loads((Path(__file__).parent / "equivalents.toml").read_text())


def fails(tests: list[str], tree: Path, seconds: float) -> str:
    """What the first test to fail says, in one line; "" where all pass."""
    code, output = run_tests(["-x", "-n", "0", "--tb=line", "-p", "no:cacheprovider", *tests], tree, seconds)
    if code is None:
        return "timeout"
    if not code:
        return ""
    said = output.strip().splitlines() or ["no output"]
    return next((line for line in said if line.startswith(("FAILED", "ERROR"))), said[-1])[:200]


def campaign(asked: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Judge every mutant that was drawn; those of an earlier run of the same campaign are only read."""
    tree = asked.tree.resolve()
    modules = [
        str(path.relative_to(tree))
        for package in PACKAGES
        for path in sorted((tree / package).rglob("*.py"))
        if not asked.modules or any(str(path.relative_to(tree)).startswith(name) for name in asked.modules)
    ]
    if not modules:
        raise SystemExit(f"Expected: beginnings of paths in {', '.join(PACKAGES)}. Got: {' '.join(asked.modules)}.")
    suite = measure(tree, folder, asked.jobs)
    drawn = sample(tree, modules, asked.seed, asked.count)
    kept = folder / "judged.jsonl"
    judged = {key(told): told for told in map(json.loads, kept.read_text().splitlines())} if kept.exists() else {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as copies, ThreadPoolExecutor(asked.jobs) as pool:
        idle: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for job in range(asked.jobs):
            idle.put(copy(tree, Path(copies, str(job))))

        def judged_somewhere(mutant: Mutant) -> dict[str, Any]:
            place = idle.get()
            try:
                return judge(mutant, suite, place, asked.seconds)
            finally:
                idle.put(place)

        left = [mutant for mutant in drawn if open_still(judged.get(key(asdict(mutant))), asked.seconds)]
        print(f"{len(drawn)} mutants, {len(drawn) - len(left)} of them judged before", flush=True)
        futures = [pool.submit(judged_somewhere, mutant) for mutant in left]
        try:
            with kept.open("a") as sink:
                for done, future in enumerate(as_completed(futures), 1):
                    told = future.result()
                    judged[key(told)] = told
                    sink.write(json.dumps(told) + "\n")
                    sink.flush()
                    print(f"{done} of {len(left)}: {told['outcome']:<10} {title(told)}", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C, only those that are at work come to their end
    return [judged[key(asdict(mutant))] for mutant in drawn]


def open_still(told: dict[str, Any] | None, seconds: float) -> bool:
    """Whether a mutant is to be judged: for the first time, or with the tests that there was no time for."""
    if told is None:
        return True
    return told["outcome"] in LEFT and told["tests"] < told["covering"] and told["limit"] < seconds


def key(told: dict[str, Any]) -> tuple[str, str, int]:
    """What tells two mutants apart."""
    return told["module"], told["operator"], told["occurrence"]


def title(told: dict[str, Any]) -> str:
    """Where a mutant is, and what it changes."""
    return f"{told['module']}:{told['start'][0]} {told['operator']}"


def table(judged: list[dict[str, Any]]) -> str:
    """Outcomes by module and package: equivalent mutants count for nothing, uncovered ones as survivors."""
    rows: dict[str, Counter[str]] = {}
    for told in judged:
        for name in (told["module"], told["module"].partition("/")[0], "total"):
            rows.setdefault(name, Counter())[told["outcome"]] += 1
    order = sorted(rows, key=lambda name: (name == "total", name.partition("/")[0], "/" not in name, name))
    lines = [f"{'':<32}" + "".join(f"{name:>12}" for name in (*OUTCOMES, "killed %"))]
    for name in order:
        counted = rows[name]
        tried = counted.total() - counted["equivalent"]
        share = f"{100 * counted['killed'] / tried:>12.0f}" if tried else f"{'':>12}"
        lines.append(f"{name:<32}" + "".join(f"{counted[outcome]:>12}" for outcome in OUTCOMES) + share)
    return "\n".join(lines)


def main() -> int:
    """Parse, judge, print the survivors and the table."""
    parser = argparse.ArgumentParser(prog="python -m mutants", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the drawing of mutants")
    parser.add_argument("--count", type=int, default=200, help="mutants to draw")
    parser.add_argument("--seconds", type=float, default=60, help="of tests per mutant, the narrowest first")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at a time")
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout to judge; by default this one")
    parser.add_argument("modules", nargs="*", help="beginnings of paths to draw from, such as heads or pipelines/embed")
    asked = parser.parse_args()
    folder = ROOT / ".mutants" / state(asked.tree)
    folder.mkdir(parents=True, exist_ok=True)
    judged = campaign(asked, folder)
    for told in judged:
        if told["outcome"] in LEFT:
            print(f"\n{told['outcome']} {title(told)}\n- {told['before']}\n+ {told['after']}")
    print(f"\nseed {asked.seed}, count {asked.count}\n{table(judged)}\nkept in {folder.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
