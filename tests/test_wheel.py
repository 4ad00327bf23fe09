"""The wheel that users install: it holds every module and file of the packages, and works without the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("featurestore", "heads", "pipelines")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, unpacked as an installer does."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", folder, folder / "source"], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_it_holds_every_file_of_the_packages(site: Path) -> None:
    def files(root: Path) -> set[str]:
        found = (path for name in PACKAGES for path in (root / name).rglob("*") if path.is_file())
        return {path.relative_to(root).as_posix() for path in found if "__pycache__" not in path.parts}

    assert files(site) == files(ROOT) and "heads/reporting/report.html.j2" in files(site)


FEWER = """
import runpy
from dataclasses import replace
import pipelines.demo
from heads import registry
registry.FAMILIES["dense"] = replace(registry.FAMILIES["dense"], grid=({"epochs": 2},))
write = pipelines.demo.write_digits
def fewer(corpus):
    count = write(corpus)
    for path in sorted(corpus.rglob("*.png"), key=lambda path: path.name)[100:]:
        path.unlink()
    return count
pipelines.demo.write_digits = fewer
print(pipelines.__file__)
runpy.run_module("pipelines", run_name="__main__")
"""


def test_it_runs_the_demo_without_the_checkout(site: Path, tmp_path: Path) -> None:
    """On its first digits, with nets of two epochs; the leaderboard, its report and the head that it leaves."""

    def run(*arguments: str) -> Any:
        environment = os.environ | {"PYTHONPATH": str(site)}
        command = [sys.executable, "-c", FEWER, *arguments, "--json"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        where, *told = done.stdout.splitlines()
        assert Path(where) == site / "pipelines" / "__init__.py"
        return json.loads(told[-1])

    told = run("demo", "demo")
    assert told["embed"]["embedded"] == 100 and told["embed"]["failed"] == 0
    assert {row["head"] for row in told["compare"]["leaderboard"]} >= {"ncm", "logreg", "svm", "dense"}
    assert Path(tmp_path / told["compare"]["report"]).read_text().startswith("<!doctype html>")
    digit = max((tmp_path / "demo" / "digits" / "7").iterdir())
    (predicted,) = run("predict", str(digit), "--store", "demo/store")
    assert predicted["label"] in "0123456789" and len(predicted["top"]) == 5
