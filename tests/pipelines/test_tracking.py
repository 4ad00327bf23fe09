"""What MLflow is told: in a real SQLite store, each job once, and nothing that goes wrong there ends one."""

from __future__ import annotations

import builtins
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path, PurePath
from typing import Any

import pytest

from builders import SPEC, commit, only, pictures, take
from command import json_of, penult
from featurestore import aliases
from featurestore.runs import RunRecord
from featurestore.splits import Split
from featurestore.store import FeatureStore
from heads import artifact
from pipelines.options import CompareOptions, FitData, TrackOptions, TrainOptions
from pipelines.retraining import tracking as nights
from pipelines.retraining.tracking import track
from pipelines.stored_heads import promote
from pipelines.tracking import client as mlflow_client
from pipelines.tracking import heads, track_aliases, track_run
from pipelines.tracking.client import Experiment
from pipelines.training import compare_heads, train_head

# MLflow 3.17 asks SQLAlchemy for what version 2.1 calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

SETS = SPEC, replace(SPEC, pooling="max")
OUTCOME: dict[str, Any] = {
    "run_id": "20261101T020000000000Z-retrain-0a1b2c", "recipe": "nächtlich", "date": "2026-11-01",
    "decision": "promoted", "reason": "logreg is better by 0.02.",
    "champion": {"head_id": "h1", "score": 0.9, "ci": [0.85, 0.93]},
    "challenger": {
        "head_id": "h2", "head": "logreg", "params": {"C": 0.1, "solver": "x"}, "score": 0.92, "ci": [0.88, 0.95]
    },
    "difference": {"value": 0.02, "ci": [0.005, 0.035], "p_value": 0.01, "step": 0.003},
    "test": {"metric": "top1", "rule": "better", "margin": 0.0, "decisions": 3, "old": None, "new": None},
    "n": {"train": 700, "val": 100, "test": 200, "classes": 5},
}  # fmt: skip
BLOCKED = OUTCOME | {
    "run_id": "r2", "decision": "blocked", "champion": {"head_id": "h1", "score": None, "ci": None}, "challenger": None,
    "difference": None, "test": None, "n": None,
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory; settings of MLflow that a test makes are gone after it."""
    monkeypatch.chdir(tmp_path)
    for name in mlflow_client.SETTINGS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison and two trainings on some features without images, which two sets hold."""
    made = FeatureStore.create(tmp_path_factory.mktemp("tracking") / "store")
    rows = [replace(one, uri=f"file:///gone/{one.uri}.png") for one in pictures(range(60))]
    for number, spec in enumerate(SETS):
        commit(made, f"20260101T00000{number}000000Z-embed-000000", rows, spec)
    data = FitData(SETS[0].set_name, split=Split(0.2, 0.25, 5))
    compare_heads(made.path, CompareOptions(only("ncm", "knn", "ridge", knn=[{"k": 3}, {"k": 99}]), data=data))
    train_head(made.path, TrainOptions("knn", {"k": 1}, data=data))
    train_head(made.path, TrainOptions("ridge", class_weight="balanced", data=data))
    return Path(made.path)


@pytest.fixture
def store(template: Path, place: Path) -> Path:
    return Path(shutil.copytree(template, place / "store"))


def newest(store: PurePath, kind: str = "train") -> str:
    return [run.run_id for run in FeatureStore(store).runs() if run.kind == kind][-1]


def told(uri: str, outcome: dict[str, Any] = OUTCOME, experiment: str = "penult") -> str | None:
    """Track; what went wrong was also said."""
    said: list[str] = []
    wrong = track(TrackOptions(uri, experiment), outcome, Path("no store"), said.append)
    assert said == [one for one in [wrong] if one]
    return wrong


def test_without_an_address_nothing_is_tracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert track(TrackOptions(), OUTCOME, Path("no store"), lambda _: pytest.fail("said")) is None


MISSING = "Tracking needs the package mlflow: `pip install 'penult[track]'` brings MLflow and its SQLite store."


@pytest.mark.parametrize(
    ("package", "said"),
    [("mlflow", MISSING), ("psycopg2", "Tracking needs the package psycopg2: install it.")],
)
def test_a_night_where_a_package_is_not_installed(
    place: Path, monkeypatch: pytest.MonkeyPatch, package: str, said: str
) -> None:
    real = builtins.__import__

    def without(name: str, *given: Any, **options: Any) -> Any:
        if name == "mlflow":
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name, *given, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert told("sqlite:///m.db") == said


@pytest.mark.parametrize("command", ["train", "compare", "promote", "rollback"])
def test_a_command_where_mlflow_is_not_installed_does_nothing(
    store: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    before = sorted(store.rglob("*"))
    done = penult(command, "--store", store, "--track", "sqlite:///m.db", "--json")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"penult: {MISSING}\n")
    assert sorted(store.rglob("*")) == before


def test_a_database_that_hangs_is_not_waited_for_long(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(mlflow_client, "LIMIT_SECONDS", 0.1)
    monkeypatch.setattr(mlflow_client, "_client", lambda _: over.wait(60))
    assert told("sqlite:///m.db") == "MLflow did not take the night within 0.1 s."
    over.set()


def test_for_a_large_head_there_is_more_time(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = newest(store)
    size = (store / "runs" / run_id / "head.npz").stat().st_size
    monkeypatch.setattr(mlflow_client, "LEAST_RATE", size // 4)
    monkeypatch.setattr(mlflow_client, "within", lambda seconds, *_: f"{seconds:g}")
    assert track_run(store, run_id, TrackOptions("sqlite:///m.db")) == "124"


def test_of_an_error_one_line_is_told() -> None:
    assert mlflow_client._told(ValueError("a\nb"), "sqlite:///m.db") == "ValueError: a"
    for uri in ("postgresql://me:pw@host/db", "http://host/?token=x"):
        assert mlflow_client._told(ValueError("a"), uri) == "ValueError"


# --- in an environment with the extra: make test-track


def runs_in(uri: str, experiment: str = "penult") -> list[Any]:
    client = mlflow_client._client(uri)
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def test_nights_in_a_real_database(place: Path) -> None:
    pytest.importorskip("mlflow")
    uri = f"sqlite:///{place}/m.db"
    for outcome in (OUTCOME, BLOCKED, OUTCOME):
        assert told(uri, outcome) is None
    blocked, promoted = sorted(runs_in(uri), key=lambda run: run.data.tags["penult.decision"])
    assert promoted.info.status == blocked.info.status == "FINISHED"
    assert promoted.info.run_name == "nächtlich 2026-11-01"
    assert promoted.data.params == {
        "recipe": "nächtlich", "rule": "better", "metric": "top1", "margin": "0.0", "head": "logreg", "head.C": "0.1",
        "head.solver": "x",
    }  # fmt: skip
    assert promoted.data.metrics == {
        "n.train": 700, "n.val": 100, "n.test": 200, "n.classes": 5, "champion": 0.9, "champion.low": 0.85,
        "champion.high": 0.93, "challenger": 0.92, "challenger.low": 0.88, "challenger.high": 0.95, "difference": 0.02,
        "difference.low": 0.005, "difference.high": 0.035, "p_value": 0.01,
    }  # fmt: skip
    assert promoted.data.tags == {
        "penult.run_id": OUTCOME["run_id"], "penult.date": "2026-11-01", "penult.decision": "promoted",
        "penult.champion": "h1", "penult.challenger": "h2", "penult.head_id": "h2",
        "mlflow.runName": "nächtlich 2026-11-01", "mlflow.note.content": "logreg is better by 0.02.",
    }  # fmt: skip
    assert blocked.data.params == {"recipe": "nächtlich"} and blocked.data.metrics == {}
    assert blocked.data.tags["penult.champion"] == "h1" and "penult.challenger" not in blocked.data.tags
    assert told(uri, BLOCKED, "others") is None and len(runs_in(uri, "others")) == 1
    assert sorted(path.name for path in place.iterdir()) == ["m.db"]


def test_an_attempt_that_was_killed_is_completed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("mlflow").MlflowClient
    uri = f"sqlite:///{place}/m.db"

    class Killed(BaseException):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    for step in ("log_batch", "set_terminated"):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(client, step, die)
            Experiment(uri, "penult").write(nights.entry_of(OUTCOME))
    assert [run.info.status for run in runs_in(uri)] == ["RUNNING"]
    assert told(uri) is None
    (run,) = runs_in(uri)
    assert run.info.status == "FINISHED" and run.data.metrics["champion"] == 0.9
    assert len(mlflow_client._client(uri).get_metric_history(run.info.run_id, "champion")) == 1


# --- comparisons and trainings


def families(uri: str, parent: Any) -> dict[str, Any]:
    """The child runs of a comparison, by name."""
    found = [run for run in runs_in(uri) if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run.data for run in found}


def parents(uri: str, experiment: str = "penult") -> list[Any]:
    return [run for run in runs_in(uri, experiment) if "mlflow.parentRunId" not in run.data.tags]


def on_test(told: dict[str, Any], winner: dict[str, Any]) -> dict[str, float]:
    """What a result says of the test split, as metrics."""
    found = {"test": winner["test"], "test.low": winner["test_ci"][0], "test.high": winner["test_ci"][1]}
    found |= {f"test.{name}": winner["metrics"][name] for name in ("macro_f1", "balanced_accuracy")}
    if calibration := winner["calibration"]:
        found |= {f"calibration.{name}": calibration[name] for name in ("temperature", "ece_before", "ece_after")}
    return found | {"baseline": told["baseline"]}


def rated(row: dict[str, Any]) -> dict[str, float]:
    found = {"val": row["val"], "fit_seconds": row["fit_seconds"], "p_value": row.get("p_value")}
    found |= dict(zip(("val.low", "val.high"), row["val_ci"], strict=True))
    return {name: value for name, value in found.items() if value is not None}


ASKED = {"label_set": "default", "split.val": "0.2", "split.test": "0.25", "split.seed": "5"}
OF_SET = {"feature_set": SPEC.set_name, "fingerprint": SPEC.fingerprint()}


def test_notes_are_the_description(store: Path) -> None:
    opened = FeatureStore(store)
    record = opened.runs()[-1]
    noted = replace(record, result=record.result | {"notes": ["One.", "Two."]})
    assert heads.entry_of(opened, noted).tags["mlflow.note.content"] == "One.\n\nTwo."


def test_the_winner_is_the_row_that_was_chosen(store: Path) -> None:
    """With `--prefer simple` it need not be the first."""
    opened = FeatureStore(store)
    record = next(run for run in opened.runs() if run.kind == "compare")
    board = record.result["leaderboard"]
    seen, firsts = set(), []
    for at, row in enumerate(board):
        if row["head"] not in seen:
            seen.add(row["head"])
            firsts.append(at)
    assert len(firsts) > 1
    entry = heads.entry_of(opened, replace(record, result=record.result | {"chosen": firsts[1]}))
    assert entry.params["head"] == board[firsts[1]]["head"] and entry.metrics["val"] == board[firsts[1]]["val"]
    assert ["test" in child.metrics for child in entry.children] == [at == firsts[1] for at in firsts]


def test_a_comparison_in_a_real_database(store: Path, place: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri, run_id = f"sqlite:///{place}/m.db", newest(store, "compare")
    result = FeatureStore(store).runs()[-3].result
    assert track_run(store, run_id, TrackOptions(uri), pytest.fail) is None
    (run,) = parents(uri)
    board, winner = result["leaderboard"], result["winner"]
    n = {f"n.{part}": count for part, count in result["n"].items()}
    common = ASKED | OF_SET | {"seeds": "0", "chosen_by": "validation", "class_weight": "none"}

    def named(row: dict[str, Any]) -> dict[str, str]:
        return {"head": row["head"], **{f"head.{name}": str(value) for name, value in row["params"].items()}}

    assert run.data.params == common | named(board[0])
    assert run.data.metrics == rated(board[0]) | n | on_test(result, winner)
    assert run.data.tags == {
        "penult.run_id": run_id, "penult.head_id": run_id, "penult.kind": "compare", "mlflow.runName": run_id,
    }  # fmt: skip
    assert (run.info.status, run.info.run_name) == ("FINISHED", run_id)
    found = families(uri, run)
    assert sorted(found) == ["knn", "ncm", "ridge"]
    for rank, row in enumerate(board, 1):
        if row["head"] not in found or row["val"] is None:
            continue
        child = found.pop(row["head"])  # the first row of a family is its best
        assert child.params == common | named(row)
        assert child.metrics == rated(row) | n | (on_test(result, winner) if rank == 1 else {})
        assert (child.tags["penult.run_id"], child.tags["penult.row"]) == (run_id, str(rank))
        assert "penult.head_id" not in child.tags
    assert not found

    kept, own = mlflow.MlflowClient(uri).download_artifacts(run.info.run_id, "", str(place)), store / "runs" / run_id
    assert sorted(path.name for path in Path(kept).iterdir() if path.suffix in (".html", ".json", ".npz")) == [
        "head.json", "head.npz", "report.html",
    ]  # fmt: skip
    assert (Path(kept) / "report.html").read_bytes() == (own / "report.html").read_bytes()
    head, _ = artifact.load(Path(kept), SPEC.fingerprint())
    assert head.family == winner["head"]

    before = [(run.info.run_id, run.info.end_time, run.data) for run in runs_in(uri)]
    assert track_run(store, run_id, TrackOptions(uri), pytest.fail) is None
    after = [(run.info.run_id, run.info.end_time, run.data) for run in runs_in(uri)]
    assert str(after) == str(before)


def test_a_training_in_a_real_database(store: Path, place: Path) -> None:
    pytest.importorskip("mlflow")
    uri, run_id = f"sqlite:///{place}/m.db", newest(store)
    result = FeatureStore(store).runs()[-1].result
    assert track_run(store, run_id, TrackOptions(uri, "mine"), pytest.fail) is None
    (run,) = runs_in(uri, "mine")
    assert run.data.params == ASKED | OF_SET | {
        "head": "ridge", "head.alpha": str(result["params"]["alpha"]), "class_weight": "balanced", "seeds": "0",
    }  # fmt: skip
    n = {f"n.{part}": count for part, count in result["n"].items()}
    assert run.data.metrics == rated(result) | n | on_test(result, result)
    assert run.data.tags["penult.kind"] == "train"
    assert run.info.start_time == 1000 * int(record_time(store, run_id).timestamp()) < run.info.end_time


def test_several_sets_and_a_family_that_failed(store: Path, place: Path) -> None:
    pytest.importorskip("mlflow")
    uri, sets = f"sqlite:///{place}/m.db", sorted(spec.set_name for spec in SETS)
    options = CompareOptions(only("ncm", "knn", knn=[{"k": 99}]), sets=tuple(sets))
    told = compare_heads(store, options)
    assert track_run(store, told["run_id"], TrackOptions(uri), pytest.fail) is None
    (run,) = parents(uri)
    found = families(uri, run)
    assert sorted(found) == sorted(f"{head} {name}" for head in ("ncm", "knn") for name in sets)
    for spec in SETS:
        child, failed = found[f"ncm {spec.set_name}"], found[f"knn {spec.set_name}"]
        assert child.params["fingerprint"] == failed.params["fingerprint"] == spec.fingerprint()
        assert "val" in child.metrics and "val" not in failed.metrics
        assert "Got: 99" in failed.tags["mlflow.note.content"]
    states = {run.info.run_name.split()[0]: run.info.status for run in runs_in(uri)}
    assert (states["ncm"], states["knn"]) == ("FINISHED", "FAILED")


def test_what_was_killed_on_the_way_is_completed(store: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("mlflow").MlflowClient
    uri, opened = f"sqlite:///{place}/m.db", FeatureStore(store)
    run_id, record = newest(store, "compare"), opened.runs()[-3]

    class Killed(BaseException):
        pass

    def dies_at(step: str, call: int) -> bool:
        calls, real = iter(range(1, 99)), getattr(client, step)

        def counted(*given: Any, **options: Any) -> Any:
            if next(calls) == call:
                raise Killed
            return real(*given, **options)

        with monkeypatch.context() as patch:
            patch.setattr(client, step, counted)
            try:
                Experiment(uri, "penult").write(heads.entry_of(opened, record))
            except Killed:
                return True
        return False

    assert dies_at("create_run", 1) and dies_at("log_batch", 1) and dies_at("create_run", 1)  # of the first child
    assert dies_at("set_terminated", 2) and dies_at("log_batch", 3)  # of the second child, which is there already
    assert dies_at("log_artifact", 2) and dies_at("set_terminated", 1)  # all but the last word
    assert track_run(store, run_id, TrackOptions(uri), pytest.fail) is None
    (run,) = parents(uri)
    assert len(families(uri, run)) == 3 and len(runs_in(uri)) == 4
    assert {run.info.status for run in runs_in(uri)} == {"FINISHED"}
    for one in runs_in(uri):
        for name in one.data.metrics:
            assert len(client(uri).get_metric_history(one.info.run_id, name)) == 1
    assert len(client(uri).list_artifacts(run.info.run_id)) == 3


def test_aliases_are_tags(store: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{place}/m.db"
    first, second = [run.run_id for run in FeatureStore(store).runs() if run.kind == "train"]
    of_night = OUTCOME | {"run_id": "n", "challenger": OUTCOME["challenger"] | {"head_id": second}}
    night = track(TrackOptions(uri), of_night, store, pytest.fail)
    assert night is None and marked(uri) == {}
    for run_id in (first, second):
        assert track_run(store, run_id, TrackOptions(uri), pytest.fail) is None
    assert marked(uri) == {}
    asked = ("--store", store, "--track", uri, "--json")
    assert json_of(penult("promote", first, *asked))["head_id"] == first
    assert marked(uri) == {first: {"champion"}}
    json_of(penult("promote", first, "--alias", "candidate", *asked))
    json_of(penult("promote", second, *asked))
    assert marked(uri) == {first: {"candidate"}, second: {"champion"}, "n": {"champion"}}
    since = aliases.history(store, "champion")[-1].moved
    since_when = {run.data.tags.get("penult.alias.champion") for run in runs_in(uri)}
    assert since_when == {since, None}
    json_of(penult("rollback", *asked))
    assert marked(uri) == {first: {"champion", "candidate"}}

    other = Path(shutil.copytree(store, place / "other"))  # of another store, though not of other heads
    shutil.rmtree(other / "aliases")
    own = json_of(penult("train", "--store", other, "--head", "ncm", "--track", uri, "--json"))["run_id"]
    json_of(penult("promote", own, "--store", other, "--track", uri, "--json"))
    assert marked(uri) == {first: {"champion", "candidate"}, own: {"champion"}}
    promote(FeatureStore(store), second)  # without a word to MLflow
    assert marked(uri)[first] == {"champion", "candidate"}
    assert track_run(store, first, TrackOptions(uri), pytest.fail) is None  # which is there, but not where the tag is
    assert marked(uri) == {first: {"candidate"}, second: {"champion"}, "n": {"champion"}, own: {"champion"}}

    def refuse(*_: object) -> None:
        raise RuntimeError

    for change in ("set_tag", "delete_tag"):
        monkeypatch.setattr(mlflow.MlflowClient, change, refuse)
    assert track_aliases(store, TrackOptions(uri), pytest.fail) is None  # nothing is to be changed


def record_time(store: Path, run_id: str) -> datetime:
    return datetime.fromisoformat(RunRecord.read(FeatureStore(store).run_folder(run_id)).started)


def marked(uri: str) -> dict[str, set[str]]:
    """By penult's run id, the aliases that are tags of its MLflow run."""
    found = {}
    for run in runs_in(uri):
        names = {tag.removeprefix("penult.alias.") for tag in run.data.tags if tag.startswith("penult.alias.")}
        if names:
            found[run.data.tags["penult.run_id"]] = names
    return found


def test_a_store_in_a_bucket(request: pytest.FixtureRequest, place: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    bucket_place = request.getfixturevalue("bucket_place")  # not before: its server takes a second to start
    made = FeatureStore.create(bucket_place)
    rows = [replace(one, uri=f"file:///gone/{one.uri}.png") for one in pictures(range(60))]
    commit(made, "20260101T000000000000Z-embed-000000", rows)
    uri, run_id = f"sqlite:///{place}/m.db", train_head(bucket_place, TrainOptions("ncm"))["run_id"]
    assert track_run(bucket_place, run_id, TrackOptions(uri), pytest.fail) is None
    (run,) = runs_in(uri)
    kept = mlflow.MlflowClient(uri).download_artifacts(run.info.run_id, "head.npz", str(place))
    assert Path(kept).read_bytes() == take(made.run_folder(run_id) / "head.npz")


@pytest.fixture
def server(place: Path) -> Iterator[str]:
    """The address of MLflow's own server, whose app runs in a process of its own; the variables are MLflow's."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {"FILE_STORE": "sqlite:///s.db", "ARTIFACT_ROOT": "mlflow-artifacts:/", "SERVE_ARTIFACTS": "true"}
    variables |= {"ARTIFACT_DESTINATION": str(place / "kept")}
    environment = os.environ | {f"_MLFLOW_SERVER_{name}": value for name, value in variables.items()}
    command = [sys.executable, "-m", "flask", "--app", "mlflow.server", "run", "--port", str(port)]
    log, deadline = place / "log", time.monotonic() + 60
    with log.open("w") as file, subprocess.Popen(command, env=environment, stdout=file, stderr=file) as process:
        try:
            while "Running on" not in log.read_text():
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def test_a_real_server_is_told_and_nothing_more_is_said(request: pytest.FixtureRequest, store: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = request.getfixturevalue("server")
    command = ("compare", "--store", store, "--heads", "ncm,ridge", "--json")
    plain, tracked = penult(*command), penult(*command, "--track", uri)
    told = json_of(tracked)
    assert len(tracked.stdout.splitlines()) == 1
    assert len(tracked.stderr.splitlines()) == len(plain.stderr.splitlines())
    (run,) = parents(uri)
    assert (run.info.status, run.data.metrics["test"]) == ("FINISHED", told["winner"]["test"])
    assert sorted(families(uri, run)) == ["ncm", "ridge"]
    kept = mlflow.MlflowClient(uri).download_artifacts(run.info.run_id, "head.npz", str(store.parent))
    assert Path(kept).read_bytes() == (store / "runs" / told["run_id"] / "head.npz").read_bytes()
    assert track_run(store, told["run_id"], TrackOptions(uri), pytest.fail) is None and len(runs_in(uri)) == 3
    json_of(penult("promote", told["run_id"], "--store", store, "--track", uri, "--json"))
    assert marked(uri) == {told["run_id"]: {"champion"}}


@pytest.mark.parametrize("command", [("train", "--head", "ncm"), ("compare", "--heads", "ncm,ridge")])
def test_a_command_whose_server_is_away_ends_as_without_it(store: Path, command: tuple[str, ...]) -> None:
    pytest.importorskip("mlflow")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    done = penult(*command, "--store", store, "--track", f"http://127.0.0.1:{port}", "--json")
    run_id = json_of(done)["run_id"]
    *_, line = done.stderr.splitlines()
    assert line.startswith(f"MLflow did not take the run {run_id} (MlflowException: ")
    assert artifact.load(store / "runs" / run_id)[0].family


def test_a_server_that_is_not_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the user's setting holds
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    wrong = told(f"http://127.0.0.1:{port}") or ""
    assert wrong.startswith("MLflow did not take the night (MlflowException: ") and "max retries" in wrong.lower()
    assert len(wrong) < 300
    wrong = told(f"http://me:secret@127.0.0.1:{port}") or ""
    assert wrong == "MLflow did not take the night (MlflowException)."
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1" and os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"


@pytest.mark.parametrize("uri", ["nonsense://x", "sqlite+nonsense:///m.db", "nonsense://me:secret@host/db"])
def test_what_is_no_store_is_one_line(uri: str, place: Path) -> None:
    pytest.importorskip("mlflow")
    wrong = told(uri) or ""
    assert wrong.startswith("MLflow did not take the night (") and "\n" not in wrong and "secret" not in wrong


def test_nothing_else_is_said(place: Path) -> None:
    """In a process of its own: MLflow sets its loggers up once, and tells its makers that it is used."""
    pytest.importorskip("mlflow")
    code = "import os\nfrom test_tracking import OUTCOME, told\nassert told('sqlite:///m.db') is None\n"
    code += "assert os.environ['MLFLOW_DISABLE_TELEMETRY'] == 'true'"
    run = [sys.executable, "-c", f"import sys; sys.path.append({str(Path(__file__).parent)!r})\n{code}"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
