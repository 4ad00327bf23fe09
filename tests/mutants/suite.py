"""Which tests run a line, and how long they take: measured once per state of the code, and kept."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import coverage

from mutants import contexts

PACKAGES = ("featurestore", "heads", "pipelines")

BLIND = ["tests/faults/test_kills.py::test_told_to_stop_while_it_imports"]
"""Waits for a moment of a process's start that it does not have with coverage's own start before it."""

CONFIGURATION = """
[run]
context = ${{{context}-}}
data_file = {data}
include = {include}
parallel = true
sigterm = true
concurrency = thread, multiprocessing
patch = _exit, fork
disable_warnings = no-data-collected, module-not-measured, already-imported, dynamic-conflict, couldnt-parse
"""


@dataclass(frozen=True)
class Suite:
    """What one run of the whole suite under coverage has shown."""

    tests: dict[str, dict[str, Any]]
    """By test: ``seconds`` without those of its shared fixtures, ``passed``, and ``shared``, their contexts."""
    fixtures: dict[str, float]
    """By shared fixture: its seconds."""
    lines: dict[str, dict[int, set[str]]]
    """By module and line: the contexts, which are tests and shared fixtures."""

    @cached_property
    def users(self) -> dict[str, set[str]]:
        """The tests of each context; a test that failed without any mutant can tell nothing.

        Processes of the fault battery are forked from one that the first of its tests started, and count for that one:
        what one test of the battery runs, all of them may.
        """
        users: dict[str, set[str]] = defaultdict(set)
        passed = [name for name, test in self.tests.items() if test["passed"]]
        battery = {name for name in passed if name.startswith("tests/faults/")}
        for name in passed:
            for context in (name, *self.tests[name]["shared"]):
                users[context].add(name)
            if name in battery:
                users[name] = battery
        return users

    def covering(self, module: str, lines: range | None) -> list[str]:
        """The tests that run one of the lines, those that run the fewest others first.

        What an import runs (``lines`` is None) may be noticed by a test that runs no line of the module, such as one of
        a table: those are all tests of the files that run the module at all, of the file that is most about it first.
        """
        known = self.lines.get(module, {})
        if lines is not None:
            return sorted(self.running(known, lines), key=lambda name: (self.breadth[name], name))
        shares = self.shares(module)
        tests = [name for name in self.tests if shares.get(file_of(name)) and self.tests[name]["passed"]]
        return sorted(tests, key=lambda name: (-shares[file_of(name)], self.breadth[name], name))

    def running(self, known: dict[int, set[str]], lines: Iterable[int]) -> set[str]:
        """The tests of some lines of a module."""
        found = {context for line in lines for context in known.get(line, ())}
        return set().union(*(self.users.get(context, ()) for context in found))

    @cached_property
    def files(self) -> dict[str, dict[str, int]]:
        """By test file: how many lines of each module its tests run."""
        files: dict[str, Counter[str]] = defaultdict(Counter)
        for module, known in self.lines.items():
            for line in known:
                for file in {file_of(name) for name in self.running(known, [line])}:
                    files[file][module] += 1
        return files

    def shares(self, module: str) -> dict[str, float]:
        """By test file: which part of the lines that it runs are the module's."""
        return {file: counted[module] / counted.total() for file, counted in self.files.items() if counted[module]}

    @cached_property
    def breadth(self) -> dict[str, int]:
        """How many lines a test runs, its shared fixtures included: the fewer, the more it is about each."""
        counted = Counter(context for known in self.lines.values() for found in known.values() for context in found)
        return {name: counted[name] + sum(counted[one] for one in test["shared"]) for name, test in self.tests.items()}

    def chosen(self, tests: list[str], seconds: float) -> list[str]:
        """The first tests that fit into so many seconds, a file's together; one at least."""
        files: dict[str, list[str]] = defaultdict(list)
        made: set[str] = set()
        for test in tests:
            cost = self.seconds([test], made)
            if seconds > cost or not files:
                files[file_of(test)].append(test)
                made.update(self.tests[test]["shared"])
                seconds -= cost
        return [test for file in files.values() for test in file]

    def seconds(self, tests: list[str], made: Collection[str] = ()) -> float:
        """What the tests take together, with the shared fixtures that are not ``made`` yet."""
        needed = {context for test in tests for context in self.tests[test]["shared"]}.difference(made)
        return sum(self.tests[test]["seconds"] for test in tests) + sum(self.fixtures.get(name, 0) for name in needed)


def file_of(test: str) -> str:
    """The file that a test is in."""
    return test.partition("::")[0]


def measure(tree: Path, folder: Path, jobs: int) -> Suite:
    """Run the suite of ``tree`` under coverage and keep what it shows in ``folder``; read it where it is there."""
    kept = folder / "suite.json"
    if not kept.exists():
        configuration = folder / "coverage.ini"
        include = ",".join(f"{tree}/{package}/*" for package in PACKAGES)
        configuration.write_text(
            CONFIGURATION.format(context=contexts.CONTEXT, data=folder / "coverage.db", include=include)
        )
        heard = folder / "tests.json"
        environment = os.environ | {
            "COVERAGE_PROCESS_START": str(configuration),
            "PYTHONPATH": f"{tree}{os.pathsep}{Path(__file__).parents[1]}",
            contexts.RESULT: str(heard),
        }
        command = [sys.executable, "-m", "pytest", "-p", "mutants.contexts", "-n", str(jobs), "--dist", "worksteal"]
        command += [f"--deselect={test}" for test in BLIND]
        if subprocess.run(command, cwd=tree, env=environment, check=False).returncode not in (0, 1):
            raise SystemExit("Expected a run of the whole suite. Got none: see what pytest says above.")
        kept.write_text(json.dumps(json.loads(heard.read_text()) | {"lines": lines(tree, folder, configuration)}))
    read = json.loads(kept.read_text())
    return Suite(
        read["tests"],
        read["fixtures"],
        {module: {int(line): set(found) for line, found in known.items()} for module, known in read["lines"].items()},
    )


def lines(tree: Path, folder: Path, configuration: Path) -> dict[str, dict[int, list[str]]]:
    """The contexts of every line of every module, out of the data of all processes."""
    measured = coverage.Coverage(config_file=str(configuration))
    measured.combine([str(folder)])
    data = measured.get_data()
    modules = [path for package in PACKAGES for path in sorted((tree / package).rglob("*.py"))]
    return {
        str(module.relative_to(tree)): {
            line: sorted(set(found) - {""}) for line, found in data.contexts_by_lineno(str(module)).items()
        }
        for module in modules
    }


def statement(source: str, line: int) -> range | None:
    """The lines of the statement at ``line``, without the statements in its body; None where an import runs it."""
    innermost, inside = None, False
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.stmt) or not node.lineno <= line <= (node.end_lineno or node.lineno):
            continue
        if innermost is None or node.lineno >= innermost.lineno:
            innermost = node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside |= line >= node.body[0].lineno
    if innermost is None or not inside:
        return None
    body = [child.lineno for child in ast.iter_child_nodes(innermost) if isinstance(child, ast.stmt)]
    end = min([first for first in body if first > line], default=(innermost.end_lineno or line) + 1)
    return range(innermost.lineno, max(end, innermost.lineno + 1))
