"""A pytest plugin that tells coverage which test, or which shared fixture, runs a line, and how long each takes.

A child process learns its context from the environment, where the configuration that ``suite.measure`` writes reads it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import coverage
import pytest

CONTEXT = "MUTANTS_CONTEXT"
RESULT = "MUTANTS_RESULT"

tests: dict[str, dict[str, Any]] = {}
fixtures: dict[str, float] = {}
made = pytest.StashKey[dict[str, float]]()


@contextmanager
def entered(name: str) -> Iterator[None]:
    """Lines run in here are counted for ``name``."""
    before = os.environ.get(CONTEXT, "")
    measured = coverage.Coverage.current()
    os.environ[CONTEXT] = name
    if measured:
        measured.switch_context(name)
    try:
        yield
    finally:
        os.environ[CONTEXT] = before
        if measured:
            measured.switch_context(before)


def fixture_context(fixture: pytest.FixtureDef[Any]) -> str:
    """The context of a fixture that several tests share; ``fixture <folder or file> <name>``."""
    return f"fixture {fixture.baseid} {fixture.argname}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Function) -> Iterator[None]:
    """Every line that a test runs is the test's, but for those of its shared fixtures."""
    shared = [
        fixture_context(found[-1])
        for name, found in item._fixtureinfo.name2fixturedefs.items()
        if name in item.fixturenames and found[-1].scope != "function"
    ]
    item.stash[made] = {}
    item.user_properties += [("shared", shared), ("made", item.stash[made])]
    with entered(item.nodeid):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> Iterator[None]:
    """A shared fixture runs once, for every test that uses it; those that it uses itself run before."""
    if fixturedef.scope == "function":
        return (yield)
    name, began = fixture_context(fixturedef), time.monotonic()
    with entered(name):
        try:
            return (yield)
        finally:
            request._pyfuncitem.stash[made][name] = time.monotonic() - began


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up seconds; the plugin of the process that hands the tests out hears of all of them."""
    told = dict(report.user_properties)
    test = tests.setdefault(report.nodeid, {"seconds": 0.0, "passed": True, "shared": []})
    test["seconds"] += report.duration
    test["passed"] &= report.outcome != "failed"
    test["shared"] = told.get("shared", test["shared"])
    if report.when == "setup":
        test["seconds"] -= sum(told.get("made", {}).values())
        fixtures.update(told.get("made", {}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave what was heard to ``suite.measure``."""
    if not hasattr(session.config, "workerinput"):
        Path(os.environ[RESULT]).write_text(json.dumps({"tests": tests, "fixtures": fixtures}))
