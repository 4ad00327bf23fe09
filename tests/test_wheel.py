"""The wheel that users install holds every file of the packages, and runs the demo without the checkout; real weights.

What the demo leaves is what these tests look at: its JSON, and a store for commands that need one.
"""

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

from command import json_of, penult
from featurestore.store import FeatureStore

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
DIGITS = 300  # of the 1,797 are embedded here; the others would say the same
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


FEWER = f"""
import runpy
from dataclasses import replace
import pipelines.demo
from heads import registry
registry.FAMILIES["dense"] = replace(registry.FAMILIES["dense"], grid=({{"epochs": 2}},))
write = pipelines.demo.write_digits
def fewer(corpus):
    count = write(corpus)
    for path in sorted(corpus.rglob("*.png"), key=lambda path: path.name)[{DIGITS}:]:
        path.unlink()
    return count
pipelines.demo.write_digits = fewer
print(pipelines.__file__)
runpy.run_module("pipelines", run_name="__main__")
"""


def installed(site: Path, folder: Path, *arguments: str) -> Any:
    """What a command of the wheel says in JSON, in a process that is elsewhere."""
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", FEWER, *arguments, "--json"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    where, *told = done.stdout.splitlines()
    assert Path(where) == site / "pipelines" / "__init__.py"
    return json.loads(told[-1])


@pytest.fixture(scope="module")
def demo(site: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The demo on its first digits, with nets of two epochs, for all tests here: its folder and its JSON."""
    folder = tmp_path_factory.mktemp("demo")
    return folder / "demo", installed(site, folder, "demo", "demo")


def test_it_runs_the_demo_without_the_checkout(site: Path, demo: tuple[Path, dict[str, Any]]) -> None:
    """The leaderboard, its report and the head that it leaves; its paths are as the folder was named."""
    folder, told = demo
    assert {row["head"] for row in told["compare"]["leaderboard"]} >= {"ncm", "logreg", "svm", "dense"}
    assert (folder.parent / told["compare"]["report"]).read_text().startswith("<!doctype html>")
    digit = max((folder / "digits" / "7").iterdir())
    (predicted,) = installed(site, folder.parent, "predict", str(digit), "--store", "demo/store")
    assert predicted["label"] in "0123456789" and len(predicted["top"]) == 5


def test_demo_embeds_everything_and_beats_the_baseline(demo: tuple[Path, dict[str, Any]]) -> None:
    embedded, compared = demo[1]["embed"], demo[1]["compare"]
    assert (embedded["seen"], embedded["embedded"], embedded["failed"]) == (DIGITS, DIGITS, 0)
    assert compared["winner"]["test"] > 0.85 > 3 * compared["baseline"]
    assert (demo[0].parent / compared["report"]).stat().st_size > 10_000


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
    assert (only["rows"], status["catalog"]["ok"], status["catalog"]["failed"]) == (DIGITS, DIGITS, 0)
    assert status["failures"] == {} and status["labels"] == {"default": DIGITS}

    assert {row["name"] for row in json_of(penult("backbones", "--json"))} >= {"efficientnet-lite0", "ResNet50"}
    assert {row["head"] for row in json_of(penult("heads", "--json"))} >= {"logreg", "svm", "rbf-svm", "dense", "knn"}
    assert {row["run"] for row in json_of(penult("runs", *store))} >= {told["embed"]["run_id"], trained["run_id"]}


def test_predict_computes_what_the_store_would_hold(demo: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """A image the store lacks gets the answer it would get from the store."""
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
    command = [BIN / "penult", "status", "--store", tmp_path / "nowhere"]  # as a shell starts it
    done = subprocess.run(command, capture_output=True, text=True)
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
        (["predict"], ["tensorflow", "apache_beam", "sklearn", "openvino"]),  # the store has the image
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
        "import sys, pipelines.commands\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "try:\n    pipelines.commands.main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print([name for name in {absent!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
