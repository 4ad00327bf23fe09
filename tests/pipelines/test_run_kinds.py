"""Kinds of runs: those of the jobs, one from outside, and one that nobody knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from featurestore.runs import RunRecord
from featurestore.store import FeatureStore
from pipelines import commands, run_kinds
from pipelines.maintenance import verify
from pipelines.run_kinds import RunKind, head_kinds, kind_of


def record(store: FeatureStore, kind: str, result: dict[str, Any]) -> str:
    run_id = store.new_run_id(kind)
    RunRecord(run_id, kind, "2026-01-01T00:00:00+00:00", {}, result).write(store.run_folder(run_id))
    return run_id


def rows(store: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    commands.app(["runs", "--store", str(store), "--json"], standalone_mode=False)
    return list(json.loads(capsys.readouterr().out.splitlines()[-1]))


def test_a_kind_from_outside_is_told_and_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_kinds, "_KINDS", dict(run_kinds._KINDS))
    run_kinds.register(RunKind("audit", lambda result: f"{result['checked']:,} checked", makes_head=True))
    store = FeatureStore.create(tmp_path / "store")
    run_id = record(store, "audit", {"checked": 1234})
    assert [(row["run"], row["outcome"]) for row in rows(store.path, capsys)] == [(run_id, "1,234 checked")]
    assert head_kinds() == ["train", "compare", "finetune", "audit"]
    (finding,) = verify(store.path)  # it promised a head
    assert finding.path == f"runs/{run_id}/head.json"


def test_a_kind_that_nobody_knows_is_a_row_without_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = FeatureStore.create(tmp_path / "store")
    run_id = record(store, "nobody-knows", {"anything": 1})
    (row,) = rows(store.path, capsys)
    assert (row["run"], row["outcome"], row["set"]) == (run_id, "", "")
    assert verify(store.path) == []


def test_heads_are_made_by_these() -> None:
    assert head_kinds() == ["train", "compare", "finetune"] and head_kinds(fine_tuned=False) == ["train", "compare"]
    assert [name for name in ("embed", "forget", "label", "train") if kind_of(name).makes_head] == ["train"]
    assert kind_of("finetune").makes_backbone and not kind_of("compare").makes_backbone
    assert kind_of("embed").source == "source" and kind_of("label").source == "file"
