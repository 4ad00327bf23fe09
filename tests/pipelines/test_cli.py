"""The command line as users meet it: help, the README's own examples, what a start imports; see also test_wheel."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.main import get_command

import seeded
from command import penult
from heads.backend import import_keras
from pipelines import commands
from pipelines import demo as demonstration
from pipelines.backbones import lite, table
from pipelines.embedding import worker

README = Path(__file__).parents[2] / "README.md"
COMMANDS = sorted(get_command(commands.app).commands)


def examples() -> list[str]:
    """The README's examples: the lines of its blocks marked as run by this test."""
    blocks = re.findall(r"<!-- run by the tests -->\n```sh\n(.*?)```", README.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_an_example(command: str) -> None:
    done = penult(command, "--help")
    assert done.returncode == 0 and len(done.stdout.splitlines()) > 5
    assert f"## `penult {command}`" in (README.parent / "docs" / "cli.md").read_text()
    elsewhere = ["penult demo", "penult backbones import"]  # which writes into the folder itself; where torch is
    assert any(re.match(rf"penult {command}\b", line) for line in [*examples(), *elsewhere])


def test_the_generated_pages_are_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so every default: one that moves changes what people get who give no option."""
    monkeypatch.setenv("COLUMNS", "80")  # the script sets it
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(README.parent / "docs" / "generate.py"), run_name="__main__")
    assert not ended.value.code, "run `make docs`"


@pytest.fixture
def short_lite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """EfficientNet-Lite0 of its first and last stage, with seeded weights: Keras traces it in a tenth of the time."""
    import_keras().utils.set_random_seed(7)
    first, *inner, last = lite.STAGES
    few = [(3, 4, 1, *first[3:]), *((*stage[:4], 0) for stage in inner), (3, 4, *last[2:])]
    monkeypatch.setattr(lite, "STAGES", few)
    row, weights = table.TABLE["efficientnet-lite0"], tmp_path / "lite0.weights.h5"
    seeded.settled(row.network(False, row.input_size), row.normalized).save_weights(weights)
    monkeypatch.setattr(lite.Lite, "installed", lambda _: weights)
    pinned = replace(row, sha256=hashlib.sha256(weights.read_bytes()).hexdigest())
    monkeypatch.setitem(table.TABLE, row.name, pinned)
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    worker.engine_for.cache_clear()
    yield
    worker.engine_for.cache_clear()


@pytest.mark.usefixtures("short_lite")
def test_readme_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand there, on forty images of four classes."""
    assert demonstration.write_digits(tmp_path / "digits") == len(list(tmp_path.rglob("digits/*/*.png"))) == 1797
    for label in "0123":
        (tmp_path / "photos" / label).mkdir(parents=True)
        for path in sorted((tmp_path / "digits" / label).iterdir())[:10]:
            shutil.copy(path, tmp_path / "photos" / label)
    shutil.copy(max((tmp_path / "digits" / "3").iterdir()), tmp_path / "new.png")
    rows = [
        f"photos/{path.parent.name}/{path.name},{int(path.parent.name) % 2}" for path in tmp_path.rglob("photos/*/*")
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    for name in ("net.onnx", "net.toml", "ref.png", "ref.npy"):
        shutil.copy(Path(__file__).parents[1] / "golden" / "models" / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    said = []
    for line in examples():
        program, *arguments = shlex.split(line, comments=True)
        if program == "export":
            assert arguments == ["PENULT_STORE=photos.store", "PATH=.venv/bin:$PATH"]
            monkeypatch.setenv("PENULT_STORE", "photos.store")
            continue
        assert program == "penult"
        done = penult(*arguments)
        assert done.returncode == 0, (line, done.stderr)
        said.append(done.stderr)
    assert "Nothing to embed" in said[1]


HEAVY = ["numpy", "pyarrow", "lance", "sklearn", "scipy", "featurestore.store"]
HEAVY += ["keras", "tensorflow", "openvino", "apache_beam", "torch"]
# By module, in the order of their import, what of that is there after it.
IMPORTS: dict[str, list[str]] = {
    "featurestore": [],
    "heads.comparison.space": [],
    "pipelines.commands.output": [],
    "pipelines.backbones.lite": ["numpy"],
    "pipelines.backbones.networks": ["numpy"],
    "pipelines.backbones.engines": ["numpy"],
    "pipelines.keras_head": ["numpy"],
    "pipelines.export": ["numpy", "pyarrow", "lance", "featurestore.store"],
}


def test_types_are_imported_for_the_type_checker_alone() -> None:
    code = (
        "import importlib, json, sys\n"
        "told = {}\n"
        f"for name in {list(IMPORTS)!r}:\n"
        "    importlib.import_module(name)\n"
        f"    told[name] = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]\n"
        "print(json.dumps(told))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == IMPORTS
