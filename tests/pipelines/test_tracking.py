"""Nights in MLflow: a real SQLite store, each night once, and nothing that goes wrong there ends a night."""

from __future__ import annotations

import builtins
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pipelines.retraining import tracking
from pipelines.retraining.options import TrackOptions
from pipelines.retraining.tracking import track

# MLflow 3.17 asks SQLAlchemy for what version 2.1 calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

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
    for name in tracking.SETTINGS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return tmp_path


def told(uri: str, outcome: dict[str, Any] = OUTCOME, experiment: str = "penult") -> str | None:
    """Track; what went wrong was also said."""
    said: list[str] = []
    wrong = track(TrackOptions(uri, experiment), outcome, said.append)
    assert said == [one for one in [wrong] if one]
    return wrong


def test_without_an_address_nothing_is_tracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert track(TrackOptions(), OUTCOME, lambda _: pytest.fail("said")) is None


def test_where_mlflow_is_not_installed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *given: Any, **options: Any) -> Any:
        if name == "mlflow":
            raise ModuleNotFoundError("No module named 'mlflow'", name="mlflow")
        return real(name, *given, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert told("sqlite:///m.db") == (
        "[track] needs the package mlflow: `pip install 'penult[track]'` brings MLflow and its SQLite store."
    )


def test_a_database_that_hangs_is_not_waited_for_long(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(tracking, "LIMIT_SECONDS", 0.1)
    monkeypatch.setattr(tracking, "_client", lambda _: over.wait(60))
    monkeypatch.setattr(tracking, "_write", lambda *_: None)
    assert told("sqlite:///m.db") == "MLflow did not take the night within 0.1 s."
    over.set()


def test_of_an_error_one_line_is_told() -> None:
    assert tracking._told(ValueError("a\nb"), "sqlite:///m.db") == "ValueError: a"
    for uri in ("postgresql://me:pw@host/db", "http://host/?token=x"):
        assert tracking._told(ValueError("a"), uri) == "ValueError"


# --- in an environment with the extra: make test-track


def runs_in(uri: str, experiment: str = "penult") -> list[Any]:
    client = tracking._client(uri)
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
        "penult.champion": "h1", "penult.challenger": "h2", "mlflow.runName": "nächtlich 2026-11-01",
        "mlflow.note.content": "logreg is better by 0.02.",
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
            tracking._write(tracking._client(uri), "penult", OUTCOME)
    assert [run.info.status for run in runs_in(uri)] == ["RUNNING"]
    assert told(uri) is None
    (run,) = runs_in(uri)
    assert run.info.status == "FINISHED" and run.data.metrics["champion"] == 0.9
    assert len(tracking._client(uri).get_metric_history(run.info.run_id, "champion")) == 1


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
