"""The command line as users and machines meet it: real weights, real processes where a start is the subject, the
README's own examples.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from featurestore.store import FeatureStore
from pipelines import commands
from pipelines import demo as demonstration

README = Path(__file__).parents[2] / "README.md"
COMMANDS = sorted(get_command(commands.app).commands)
BIN = Path(sys.executable).parent
DIGITS = 300  # of the 1,797 are embedded here; the others would say the same


def penult(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, as its entry point does."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["penult", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            commands.main()
    return subprocess.CompletedProcess(sys.argv, int(ended.value.code or 0), out.getvalue(), err.getvalue())


def json_of(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One demo run for all tests here, on its first digits: its folder and its JSON."""
    folder = tmp_path_factory.mktemp("demo")

    def write_fewer(corpus: Path) -> int:
        count = write_digits(corpus)
        for path in sorted(corpus.rglob("*.png"), key=lambda path: path.name)[DIGITS:]:
            path.unlink()
        return count

    write_digits = demonstration.write_digits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demonstration, "write_digits", write_fewer)
        return folder, json_of(penult("demo", folder, "--json"))


def examples() -> list[str]:
    """The README's examples: the lines of its blocks marked as run by this test."""
    blocks = re.findall(r"<!-- run by the tests -->\n```sh\n(.*?)```", README.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_an_example(command: str) -> None:
    done = penult(command, "--help")
    assert done.returncode == 0 and len(done.stdout.splitlines()) > 5
    assert f"## `penult {command}`" in (README.parent / "docs" / "cli.md").read_text()
    assert any(re.match(rf"penult {command}\b", line) for line in [*examples(), "penult demo"])


def test_the_generated_pages_are_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so every default: one that moves changes what people get who give no option."""
    monkeypatch.setenv("COLUMNS", "80")  # the script sets it
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(README.parent / "docs" / "generate.py"), run_name="__main__")
    assert not ended.value.code, "run `make docs`"


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


def test_demo_embeds_everything_and_beats_the_baseline(demo: tuple[Path, dict[str, Any]]) -> None:
    embedded, compared = demo[1]["embed"], demo[1]["compare"]
    assert (embedded["seen"], embedded["embedded"], embedded["failed"]) == (DIGITS, DIGITS, 0)
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
