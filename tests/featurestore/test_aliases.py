"""Names for heads: they point at one, remember where they pointed before, and are taken where no head is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import pytest

from builders import commit, copy_to, pictures
from featurestore import aliases
from featurestore.errors import StoreCorrupt, StoreLocked, StoreNotFound, UsageError
from featurestore.storage.files import delete
from featurestore.storage.local import LocalStorage
from featurestore.store import FeatureStore
from pipelines import commands
from pipelines.maintenance import doctor, verify
from pipelines.options import TrainOptions
from pipelines.stored_heads import find_head, promote
from pipelines.training import train_head


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two heads on some features without images."""
    made = FeatureStore.create(tmp_path_factory.mktemp("aliases") / "store")
    commit(
        made,
        "20260101T000000000000Z-embed-000000",
        [replace(one, uri=f"file:///gone/{one.uri}.png") for one in pictures(range(60))],
    )
    for head in ("ncm", "knn"):
        train_head(made.path, TrainOptions(head))
    return Path(made.path)


@pytest.fixture
def store(template: Path, place: PurePath) -> FeatureStore:
    copy_to(template, place)
    return FeatureStore(place)


def heads(store: FeatureStore) -> list[str]:
    return [run.run_id for run in store.runs() if run.kind == "train"]


@pytest.mark.everywhere
def test_without_a_name_the_champion_is_taken_else_the_newest(store: FeatureStore) -> None:
    first, second = heads(store)
    said: list[str] = []
    assert find_head(store, None, say=said.append) == second
    told = promote(store, first)
    assert told == {"alias": "champion", "head_id": first, "before": None}
    third = train_head(store.path, TrainOptions("ridge"))["head_id"]
    assert find_head(store, None, say=said.append) == first  # whatever was trained since
    assert said == [f"Head: {second}, the newest.", f"Head: {first}, the champion."]
    assert promote(store, None) == {"alias": "champion", "head_id": third, "before": first}
    assert find_head(store, "champion", say=said.append) == third and len(said) == 2  # a name was given


def test_an_alias_is_a_name_beside_ids_and_their_ends(store: FeatureStore) -> None:
    first, second = heads(store)
    promote(store, first, "challenger")
    assert find_head(store, "challenger") == find_head(store, first) == find_head(store, first[-6:]) == first
    assert find_head(store, None) == second  # no champion yet
    promote(store, "challenger")
    assert find_head(store, None) == first
    with pytest.raises(StoreNotFound, match=r"or an alias\. Got: 'champ', no such head"):
        find_head(store, "champ")


@pytest.mark.everywhere
def test_where_it_pointed_before_is_kept(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = heads(store)
    times = iter(f"2026-11-0{day}T00:00:00+00:00" for day in range(1, 9))
    monkeypatch.setattr(aliases, "utc_now", lambda: next(times))
    for head in (first, second, second, first):  # to where it points is no move
        promote(store, head)
    days = [(move.head_id, move.moved[:10]) for move in aliases.history(store.path, "champion")]
    assert days == [(first, "2026-11-01"), (second, "2026-11-02"), (first, "2026-11-03")]
    monkeypatch.setattr(aliases, "MAX_HISTORY", 2)
    promote(store, second)
    assert [move.head_id for move in aliases.history(store.path, "champion")] == [first, second]


def test_a_promise_outlives_a_power_cut(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the first alias is flushed too, by its own folder."""
    flushed: list[Path] = []
    monkeypatch.setattr(LocalStorage, "flush", lambda _, path: flushed.append(path))
    folder = store.path / "aliases"
    for name, parents in (("first", [store.path]), ("second", []), ("first", None)):
        flushed.clear()
        promote(store, heads(store)[0], name)
        assert [path for path in flushed if path.suffix != ".tmp"] == ([] if parents is None else [*parents, folder])


@pytest.mark.everywhere
def test_an_alias_of_a_head_that_is_gone_is_damage(store: FeatureStore) -> None:
    first, second = heads(store)
    promote(store, first)
    delete(store.run_folder(first))
    (finding,) = verify(store.path)
    assert finding.path == "aliases/champion.json" and first in finding.problem
    assert doctor(store.path).artifacts == ["aliases/champion.json"]
    assert verify(store.path) == [] and find_head(store, None) == second


def test_only_heads_that_can_be_used_and_only_by_one_at_a_time(store: FeatureStore) -> None:
    first, _ = heads(store)
    with pytest.raises(StoreNotFound):
        promote(store, "nosuch")
    for name in ("", "Champion", "2026", "a b", "../x", "x" * 65):
        with pytest.raises(UsageError, match="Expected: an alias"):
            promote(store, first, name)
    with store.lock(), pytest.raises(StoreLocked):
        promote(store, first)
    assert aliases.names(store.path) == []
    (store.run_folder(first) / "head.npz").write_bytes(b"")
    with pytest.raises(StoreCorrupt):
        promote(store, first)
    assert aliases.names(store.path) == []


def test_a_damaged_alias_is_found_and_put_aside(store: FeatureStore) -> None:
    first, second = heads(store)
    promote(store, first)
    path = store.path / "aliases" / "champion.json"
    whole = path.read_bytes()
    told = json.loads(whole)
    for damage in (b"{}", whole.replace(first.encode(), second.encode()), json.dumps(told | {"name": "x"}).encode()):
        path.write_bytes(damage)
        with pytest.raises(StoreCorrupt):
            find_head(store, None)
        (finding,) = verify(store.path)
        assert finding.path == "aliases/champion.json"
    result = doctor(store.path)
    assert result.artifacts == ["aliases/champion.json"] and result.todo[0].startswith("`penult promote` again")
    assert verify(store.path) == [] and find_head(store, None) == second


def test_on_the_command_line(store: FeatureStore, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = heads(store)

    def run(*arguments: str) -> tuple[Any, str]:
        commands.app(["promote", *arguments, "--store", str(store.path), "--json"], standalone_mode=False)
        told = capsys.readouterr()
        return json.loads(told.out.splitlines()[-1]), told.err

    assert run(first[-6:]) == ({"alias": "champion", "head_id": first, "before": None}, f"champion is {first}.\n")
    told, said = run()
    assert told == {"alias": "champion", "head_id": second, "before": first}
    assert said == f"champion is {second}, before: {first}.\n"
    assert run(second)[1] == f"champion is {second}.\n"  # as it was
