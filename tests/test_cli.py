"""The command line as users and machines meet it: real processes, real weights, the README's own examples."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from featurestore.store import FeatureStore
from pipelines.cli import app

README = Path(__file__).parent.parent / "README.md"
COMMANDS = sorted(get_command(app).commands)
BIN = Path(sys.executable).parent


def penult(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


def json_of(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One demo run for all tests here: its folder and its JSON."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, json_of(penult("demo", folder, "--json"))


def examples() -> list[str]:
    """The README's examples: the lines of its blocks marked as run by this test."""
    blocks = re.findall(r"<!-- run by the tests -->\n```sh\n(.*?)```", README.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_an_example(command: str) -> None:
    done = penult(command, "--help")
    assert done.returncode == 0 and len(done.stdout.splitlines()) > 5
    assert f"penult {command}" in README.read_text().partition("<!-- help")[2]
    assert any(re.match(rf"penult {command}\b", line) for line in [*examples(), "penult demo"])


def test_readme_examples_run(demo: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    for path in sorted((demo[0] / "digits").rglob("*.png"))[::4]:
        copy = tmp_path / "photos" / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    shutil.copy(demo[0] / "digits" / "3" / "0003.png", tmp_path / "new.png")
    rows = [
        f"photos/{path.parent.name}/{path.name},{int(path.parent.name) % 2}" for path in tmp_path.rglob("photos/*/*")
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    script = "\n".join(["set -e", *examples()])
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Nothing to embed" in done.stderr


def test_demo_embeds_everything_and_beats_the_baseline(demo: tuple[Path, dict[str, Any]]) -> None:
    embedded, compared = demo[1]["embed"], demo[1]["compare"]
    assert (embedded["seen"], embedded["embedded"], embedded["failed"]) == (1797, 1797, 0)
    assert compared["winner"]["test"] > 0.85 > 3 * compared["baseline"]
    assert Path(compared["report"]).stat().st_size > 10_000


def test_json_keys_machines_rely_on(demo: tuple[Path, dict[str, Any]]) -> None:
    folder, told = demo
    store = ("--store", folder / "store", "--json")
    assert told["embed"].keys() >= {
        "run_id", "feature_set", "fingerprint", "seen", "new", "changed", "unchanged", "deduplicated", "embedded",
        "failed", "failures", "seconds", "images_per_second",
    }  # fmt: skip
    assert told["embed"]["seconds"].keys() == {"plan", "read", "decode", "infer", "write", "commit", "total"}
    compared = told["compare"]
    assert compared.keys() >= {"run_id", "feature_set", "metric", "leaderboard", "winner", "n", "report"}
    assert compared["leaderboard"][0].keys() >= {"head", "params", "val", "val_ci", "fit_seconds"}
    assert compared["winner"].keys() >= {"head_id", "head", "params", "val", "test", "test_ci"}
    assert compared["n"].keys() == {"train", "val", "test", "classes"}

    trained = json_of(penult("train", *store, "--head", "ncm"))
    assert trained.keys() >= {"run_id", "head_id", "val", "test", "test_ci", "fit_seconds", "n"}

    (predicted,) = json_of(
        penult("predict", folder / "digits" / "7" / "0007.png", *store, "--head", compared["run_id"])
    )
    assert predicted.keys() == {"uri", "label", "probability", "top"}
    assert predicted["label"] == "7" and predicted["top"][0] == ["7", predicted["probability"]]

    status = json_of(penult("status", *store))
    (only,) = status["sets"]
    assert only.keys() >= {"name", "fingerprint", "backbone", "rows"}
    assert (only["rows"], status["catalog"]["ok"], status["catalog"]["failed"]) == (1797, 1797, 0)
    assert status["failures"] == {} and status["labels"] == {"default": 1797}

    assert {row["name"] for row in json_of(penult("backbones", "--json"))} >= {"efficientnet-lite0", "ResNet50"}
    assert {row["head"] for row in json_of(penult("heads", "--json"))} >= {"logreg", "svm", "rbf-svm", "dense", "knn"}
    assert {row["run"] for row in json_of(penult("runs", *store))} >= {told["embed"]["run_id"], trained["run_id"]}


def test_predict_computes_what_the_store_would_hold(demo: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """A picture the store lacks gets the answer it would get from the store."""
    folder, _ = demo
    (tmp_path / "pictures").mkdir()
    for number in range(10):
        path = min((folder / "digits" / str(number)).glob("*.png"))
        shutil.copy(path, tmp_path / "pictures" / f"{number}.png")
    other = tmp_path / "other"
    assert penult("embed", tmp_path / "pictures", "--store", other).returncode == 0
    shutil.copytree(folder / "store" / "runs", other / "runs", dirs_exist_ok=True)
    head = json_of(penult("runs", "--store", folder / "store", "--json"))[1]["run"]
    known = max((folder / "digits" / "0").glob("*.png"))  # in the demo's store, not in the other
    there = json_of(penult("predict", known, "--store", folder / "store", "--head", head, "--json"))
    here = json_of(penult("predict", known, "--store", other, "--head", head, "--json"))
    for (name, p), (other_name, q) in zip(there[0]["top"], here[0]["top"], strict=True):
        assert name == other_name and p == pytest.approx(q, abs=1e-3)


def test_exit_codes_and_one_sentence(demo: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = demo
    store = folder / "store"
    done = penult("status", "--store", tmp_path / "nowhere")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("penult: There is no penult store at ") and done.stderr.count("\n") == 1
    assert penult("embed", "--store", tmp_path / "s").returncode == 2
    done = penult("embed", folder / "digits", "--store", tmp_path / "s", "--backbone", "ResNet5")
    assert done.returncode == 2 and "ResNet50" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "s").exists()

    bad = tmp_path / "bad" / "a"
    bad.mkdir(parents=True)
    shutil.copy(next((folder / "digits" / "1").glob("*.png")), bad / "good.png")
    (bad / "bad.png").write_bytes(b"")
    done = penult("embed", bad.parent, "--store", tmp_path / "half", "--json")
    assert done.returncode == 3 and "1 of 2 files failed" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["failures"] == {"empty": 1}
    assert FeatureStore(tmp_path / "half").catalog.count() == 2

    with FeatureStore(store).lock():
        done = penult("embed", folder / "digits", "--store", store)
    assert done.returncode == 75 and "is locked by process" in done.stderr

    done = penult("predict", tmp_path / "bad" / "a" / "bad.png", "--store", store, "--json")
    assert done.returncode == 1 and json.loads(done.stdout)[0]["error_type"] == "empty"


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], ["numpy", "pyarrow", "lance", "tensorflow", "apache_beam", "sklearn", "openvino"]),
        (["status"], ["tensorflow", "apache_beam", "sklearn", "openvino"]),
        (["train"], ["tensorflow", "apache_beam", "openvino"]),
        (["predict"], ["tensorflow", "apache_beam", "sklearn", "openvino"]),  # the store has the picture
    ],
    ids=lambda value: value[0],
)
def test_light_commands_import_nothing_heavy(
    demo: tuple[Path, dict[str, Any]], arguments: list[str], absent: list[str]
) -> None:
    folder, _ = demo
    if arguments[0] != "--help":
        arguments = [*arguments, "--store", str(folder / "store")]
    if arguments[0] == "predict":
        arguments.append(str(folder / "digits" / "7" / "0007.png"))
    code = (
        "import sys, pipelines.cli\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "try:\n    pipelines.cli.main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print([name for name in {absent!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
