"""The wheel that users install: it holds every module and file of the packages, and works without the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from conftest import write_picture

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


def test_it_embeds_compares_and_predicts_without_the_checkout(site: Path, tmp_path: Path) -> None:
    for number in range(40):
        write_picture(tmp_path / "corpus" / "ab"[number % 2] / f"{number}.png", number)

    def run(*arguments: str) -> str:
        code = "import runpy, pipelines; print(pipelines.__file__); runpy.run_module('pipelines', run_name='__main__')"
        environment = os.environ | {"PYTHONPATH": str(site), "PENULT_STORE": "store"}
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        where, *told = done.stdout.splitlines()
        assert Path(where) == site / "pipelines" / "__init__.py"
        return told[-1]

    assert json.loads(run("embed", "corpus", "--json"))["embedded"] == 40
    compared = json.loads(run("compare", "--heads", "ncm,logreg", "--json"))
    assert (tmp_path / compared["report"]).read_text().startswith("<!doctype html>")
    (told,) = json.loads(run("predict", "corpus/a/0.png", "--json"))
    assert told["label"] in ("a", "b")
