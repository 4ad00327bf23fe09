"""Leaderboards as Arrow tables and as CSV files: every row, every column, every digit."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import csv as arrow_csv

from builders import commit, pictures
from command import penult
from featurestore.errors import StoreError, UsageError
from featurestore.runs import RunRecord
from featurestore.store import FeatureStore
from heads.reporting import leaderboard
from pipelines import training

BOARD = [
    {"head": "dense", "params": {"hidden": [16, 8], "optimizer": "adam", "k": "two"}, "class_weight": None,
     "val": 0.1 + 0.2, "val_ci": [0.25, 0.35], "fit_seconds": 1.5, "val_range": [0.28, 0.32], "note": 'a "b", c'},
    {"head": "knn", "params": {"k": 3}, "class_weight": None, "val": 0.3, "val_ci": [0.2, 1 / 3], "fit_seconds": 0.001,
     "p_value": 1e-17, "p_corrected": 2e-17, "tied": False},
    {"head": "logreg", "params": {"C": 1}, "class_weight": "balanced", "feature_set": "other", "val": 0.25,
     "val_ci": [0.2, 0.3], "fit_seconds": 2.0, "p_value": 0.5, "p_corrected": 0.75, "tied": True,
     "views": 2},
    {"head": "logreg", "params": {"C": 2.5}, "class_weight": None, "val": None, "val_ci": None, "fit_seconds": 0.0,
     "error": "MemoryError: no room"},
]  # fmt: skip
RESULT: dict[str, Any] = {
    "run_id": "r", "feature_set": "first", "leaderboard": BOARD, "winner": {"test": 2 / 3, "test_ci": [0.5, 0.75]},
}  # fmt: skip
COLUMNS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "run_id": (pa.string(), ["r"] * 4),
    "rank": (pa.int64(), [1, 2, 3, 4]),
    "feature_set": (pa.string(), ["first", "first", "other", "first"]),
    "head": (pa.string(), ["dense", "knn", "logreg", "logreg"]),
    "class_weight": (pa.string(), ["none", "none", "balanced", "none"]),
    "hidden": (pa.list_(pa.int64()), [[16, 8], None, None, None]),
    "optimizer": (pa.string(), ["adam", None, None, None]),
    "k": (pa.string(), ["two", "3", None, None]),
    "C": (pa.float64(), [None, None, 1.0, 2.5]),
    "views": (pa.int64(), [None, None, 2, None]),
    "val": (pa.float64(), [0.1 + 0.2, 0.3, 0.25, None]),
    "val_low": (pa.float64(), [0.25, 0.2, 0.2, None]),
    "val_high": (pa.float64(), [0.35, 1 / 3, 0.3, None]),
    "val_min": (pa.float64(), [0.28, None, None, None]),
    "val_max": (pa.float64(), [0.32, None, None, None]),
    "p_value": (pa.float64(), [None, 1e-17, 0.5, None]),
    "p_corrected": (pa.float64(), [None, 2e-17, 0.75, None]),
    "tied": (pa.bool_(), [None, False, True, None]),
    "fit_seconds": (pa.float64(), [1.5, 0.001, 2.0, 0.0]),
    "test": (pa.float64(), [2 / 3, None, None, None]),
    "test_low": (pa.float64(), [0.5, None, None, None]),
    "test_high": (pa.float64(), [0.75, None, None, None]),
    "note": (pa.string(), ['a "b", c', None, None, None]),
    "error": (pa.string(), [None, None, None, "MemoryError: no room"]),
}


def test_a_table_has_every_field_of_every_row() -> None:
    found = leaderboard.table(RESULT)
    assert found.schema == pa.schema([(name, kind) for name, (kind, _) in COLUMNS.items()])
    assert found.to_pydict() == {name: values for name, (_, values) in COLUMNS.items()}


def test_the_test_scores_are_in_the_row_that_was_chosen() -> None:
    found = leaderboard.table(RESULT | {"chosen": 2}).to_pydict()
    assert found["test"] == [None, None, 2 / 3, None] and found["test_high"] == [None, None, 0.75, None]


def test_a_csv_file_is_read_back_as_the_table(tmp_path: Path) -> None:
    path = tmp_path / "board.csv"
    path.write_text("before")
    leaderboard.write(path, RESULT)
    expected = {name: values for name, (_, values) in COLUMNS.items()} | {"hidden": ["16,8", None, None, None]}
    kinds = {name: pa.string() if name == "hidden" else kind for name, (kind, _) in COLUMNS.items()}
    empty = arrow_csv.ConvertOptions(column_types=kinds, strings_can_be_null=True)
    assert arrow_csv.read_csv(path, convert_options=empty).to_pydict() == expected
    with path.open(newline="") as file:
        first, second, *_ = csv.DictReader(file)
    assert (first["val"], first["test"], first["tied"]) == ("0.30000000000000004", "0.6666666666666666", "")
    assert (second["tied"], second["p_value"], second["k"]) == ("false", "1e-17", "3")
    assert [entry.name for entry in tmp_path.iterdir()] == ["board.csv"]


def test_a_parameter_that_is_called_as_a_column_has_a_name_of_its_own() -> None:
    row = {"head": "x", "params": {"val": 7, "views": [1]}, "class_weight": None, "val": 0.5, "val_ci": [0, 1]}
    found = leaderboard.table(RESULT | {"leaderboard": [row | {"fit_seconds": 0.0}]})
    assert (found["param_val"].to_pylist(), found["val"].to_pylist()) == ([7], [0.5])
    assert (found["param_views"].to_pylist(), found["views"].to_pylist()) == ([[1]], [None])


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    leaderboard.check(tmp_path / "new.csv")
    (tmp_path / "old.csv").write_text("old")
    leaderboard.check(tmp_path / "old.csv")
    assert [entry.name for entry in tmp_path.iterdir()] == ["old.csv"]
    places = {
        tmp_path / "none" / "b.csv": "No such file or directory",
        tmp_path / "old.csv" / "b.csv": "Not a directory",
        tmp_path: "Is a directory",
        tmp_path / "a\0b" / "c": "embedded null byte",
    }
    if Path("/proc").is_dir():  # where nobody may write, whoever it is
        places[Path("/proc/b.csv")] = ""
    for path, why in places.items():
        with pytest.raises(UsageError, match=r"Expected: --csv, a file that can be written\. Got: ") as caught:
            leaderboard.check(path)
        assert str(caught.value).endswith(f"{why}.") and str(path) in str(caught.value)


def test_the_command_writes_what_it_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore.create(tmp_path / "store")
    rows = [replace(one, uri=f"file:///gone/{one.uri}.png") for one in pictures(range(60))]
    commit(store, "20260101T000000000000Z-embed-000000", rows)
    path = tmp_path / "board.csv"
    asked = ("compare", "--store", tmp_path / "store", "--heads", "logreg,ridge", "--json")
    done = penult(*asked, "--csv", path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == len(told["leaderboard"]) > 2
    for rank, (row, its) in enumerate(zip(found, told["leaderboard"], strict=True), 1):
        assert (row["head"], int(row["rank"]), row["run_id"]) == (its["head"], rank, told["run_id"])
        numbers = {name: row[name] for name in ("val", "val_low", "val_high", "fit_seconds", *its["params"])}
        values = [its["val"], *its["val_ci"], its["fit_seconds"], *its["params"].values()]
        assert [*map(float, numbers.values())] == values
        assert math.isclose(float(row["p_value"] or 1), its.get("p_value", 1), rel_tol=0)
        assert row["test"] == (repr(told["winner"]["test"]) if rank == 1 else "")
    kept = RunRecord.read(store.run_folder(told["run_id"])).result
    assert leaderboard.table(kept) == leaderboard.table(told)

    monkeypatch.setattr(training, "load_dataset", lambda *_: pytest.fail("features were read"))
    for wrong in (tmp_path / "none" / "b.csv", tmp_path):
        done = penult(*asked, "--csv", wrong)
        assert (done.returncode, done.stdout) == (2, "") and "--csv, a file that can be written" in done.stderr


def test_a_disk_that_fills_up_meanwhile_costs_the_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.csv").write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(leaderboard, "_text", full)
    with pytest.raises(StoreError, match="make room there"):
        leaderboard.write(tmp_path / "b.csv", RESULT)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("b.csv", "old")]
