"""A corpus is what its last complete listing says; what people say lies over it. Real files, Beam and Lance."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from builders import journal, pictures
from conftest import CountingEngine, write_picture
from featurestore import runs
from featurestore.dataset import Dataset
from featurestore.errors import SourceError, TooManyRemoved, UsageError
from featurestore.schema import LABELS
from featurestore.status import failed_files, status
from featurestore.storage.files import read_sealed, write_sealed
from featurestore.storage.fragments import Replaced
from featurestore.store import FeatureStore
from pipelines import commands
from pipelines.embedding import membership
from pipelines.embedding.embed import EmbedResult, embed
from pipelines.embedding.forget import forget
from pipelines.embedding.labels import import_labels
from pipelines.maintenance import gc
from pipelines.options import EmbedOptions

ALL = EmbedOptions(accept_removed=True)


@pytest.fixture
def store(tmp_path: Path, engine: CountingEngine) -> Path:
    return tmp_path / "store"


def labels(store: Path, label_set: str = "default") -> dict[str, str]:
    """The label of each file name that a head would be trained on."""
    data = dataset(store, label_set)
    return {Path(str(uri)).name: str(label) for uri, label in zip(data.uris, data.y, strict=True)}


def splits(store: Path) -> dict[str, str]:
    data = dataset(store)
    return {Path(str(uri)).name: str(split) for uri, split in zip(data.uris, data.splits, strict=True)}


def dataset(store: Path, label_set: str = "default") -> Dataset:
    return FeatureStore(store).dataset(label_set=label_set)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def counts(result: EmbedResult) -> dict[str, int]:
    names = ("new", "unchanged", "embedded", "removed", "not_removed", "labels_changed")
    return {name: getattr(result, name) for name in names if getattr(result, name)}


# --- what is listed


def test_a_class_folder_renamed_there_and_back(corpus: Path, store: Path, engine: CountingEngine) -> None:
    before = labels_by_uri(store, embed(str(corpus), store))
    (corpus / "a").rename(corpus / "felines")
    there = embed(str(corpus), store)
    assert counts(there) == {"new": 10, "unchanged": 20, "removed": 10, "labels_changed": 10}
    assert sorted(set(labels(store).values())) == ["b", "c", "felines"]
    (corpus / "felines").rename(corpus / "a")
    back = embed(str(corpus), store)
    assert counts(back) == {"unchanged": 30, "removed": 10, "labels_changed": 10}
    assert labels_by_uri(store, back) == before and engine.images == 30


def labels_by_uri(store: Path, _: EmbedResult) -> dict[str, str]:
    data = dataset(store)
    return dict(zip(map(str, data.uris), map(str, data.y), strict=True))


def test_deleted_pictures_leave_training_status_and_coverage_and_come_back_at_no_cost(
    corpus: Path, store: Path, engine: CountingEngine, tmp_path: Path
) -> None:
    write(corpus / "a" / "broken.png", "no image")
    embed(str(corpus), store)
    (corpus / "a" / "00.png").rename(tmp_path / "00.png")
    (corpus / "a" / "broken.png").unlink()
    assert counts(embed(str(corpus), store)) == {"unchanged": 29, "removed": 2}
    assert "00.png" not in labels(store) and len(labels(store)) == 29
    told = status(FeatureStore(store))
    assert told["catalog"] == {"ok": 29, "failed": 0, "contents": 29, "removed": 2}
    assert told["failures"] == {} and told["labels"] == {"default": 29}
    assert told["sources"] == [{"source": corpus.as_uri(), "listed": 29, "removed": 2, "failed": 0}]
    assert told["sets"][0]["coverage"] == 1.0 and told["sets"][0]["rows"] == 30
    (tmp_path / "00.png").rename(corpus / "a" / "00.png")
    assert counts(embed(str(corpus), store)) == {"unchanged": 30, "labels_changed": 1}
    assert len(labels(store)) == 30 and engine.images == 30


def test_the_wrong_one_of_two_copies_is_deleted(corpus: Path, store: Path) -> None:
    shutil.copy(corpus / "a" / "00.png", corpus / "b" / "copy.png")
    embed(str(corpus), store)
    data = dataset(store)
    assert data.excluded == {"ambiguous label": 1} and len(data) == 29
    assert data.ambiguous_uris == ((corpus / "a" / "00.png").as_uri(),)
    (corpus / "b" / "copy.png").unlink()
    embed(str(corpus), store)
    data = dataset(store)
    assert data.excluded == {} and data.ambiguous_uris == () and labels(store)["00.png"] == "a"


def test_a_manifest_is_corrected(corpus: Path, store: Path, tmp_path: Path) -> None:
    rows = [f"corpus/{'abc'[i % 3]}/{i:02}.png,{'xyz'[i % 3]}" for i in range(30)]
    manifest = tmp_path / "m.csv"
    write(manifest, "\n".join(["path,label", *rows[:-1], "corpus/c/30.png,z"]))
    embed(str(manifest), store)
    assert [row["uri"].rsplit("/", 1)[-1] for row in failed_files(FeatureStore(store))] == ["30.png"]
    write(manifest, "\n".join(["path,label", *rows]))
    assert embed(str(manifest), store).removed == 1
    assert failed_files(FeatureStore(store)) == [] and len(labels(store)) == 30
    rows[0] = "corpus/a/00.png,"  # no label any more
    write(manifest, "\n".join(["path,label", *rows[:-1]]))
    result = embed(str(manifest), store)
    assert result.removed == 1 and result.labels["unlabelled"] == 1
    assert result.labels["changed"] == [{"from": "x", "to": None, "images": 1}]
    assert not {"00.png", "29.png"} & labels(store).keys() and len(labels(store)) == 28


def test_what_another_source_lists_stays(corpus: Path, store: Path, tmp_path: Path) -> None:
    embed(str(corpus), store)
    listed = ["corpus/a/00.png", "corpus/b/01.png"]
    embed(write(tmp_path / "m.csv", "\n".join(["path", *listed])), store)
    assert len(labels(store)) == 30
    (result,) = [forget(store, str(corpus))]
    assert (result["images"], result["removed"]) == (30, 28)
    assert status(FeatureStore(store))["sources"] == [
        {"source": corpus.as_uri(), "listed": 0, "removed": 30, "failed": 0},
        {"source": (tmp_path / "m.csv").as_uri(), "listed": 2, "removed": 0, "failed": 0},
    ]
    assert len(FeatureStore(store).label_rows()) == 2


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_too_much_is_missing(corpus: Path, store: Path, engine: CountingEngine, share: float) -> None:
    embed(str(corpus), store)
    for name in "ab":
        shutil.rmtree(corpus / name)
    write_picture(corpus / "c" / "new.png", 99)
    result = embed(str(corpus), store, EmbedOptions(max_removed=share))
    assert result.new == 1 and engine.images == 31
    if share == 1:
        assert counts(result)["removed"] == 20 and len(labels(store)) == 11
        return
    assert counts(result) == {"new": 1, "unchanged": 10, "embedded": 1, "not_removed": 20, "labels_changed": 1}
    assert len(labels(store)) == 31
    with pytest.raises(TooManyRemoved, match=r"20 of the 30 images .* \(66\.7%\).* --accept-removed") as raised:
        result.check(0.05, share)
    assert raised.value.exit_code == 3
    embed(str(corpus), store, ALL).check(0.05)
    assert len(labels(store)) == 11


def test_just_half_may_go(corpus: Path, store: Path) -> None:
    embed(str(corpus), store)
    for number in range(15):
        (corpus / "abc"[number % 3] / f"{number:02}.png").unlink()
    assert counts(embed(str(corpus), store)) == {"unchanged": 15, "removed": 15}


def test_an_emptied_source_is_not_believed_and_may_be_accepted(corpus: Path, store: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no images"):
        embed(str(tmp_path), store) if not any(tmp_path.iterdir()) else embed(str(make(tmp_path / "none")), store)
    embed(str(corpus), store)
    for name in "abc":
        shutil.rmtree(corpus / name)
    result = embed(str(corpus), store)
    assert counts(result) == {"not_removed": 30} and len(labels(store)) == 30
    assert counts(embed(str(corpus), store, ALL)) == {"removed": 30}
    assert status(FeatureStore(store))["catalog"] == {"ok": 0, "failed": 0, "contents": 0, "removed": 30}


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_what_cannot_be_listed_stays(corpus: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    embed(str(corpus), store)
    (corpus / "b" / "01.png").unlink()
    (corpus / "c" / "02.png").unlink()
    scan = os.scandir

    def refuse(path: Any = ".") -> Any:
        if str(path).endswith("/b"):
            raise OSError(5, "Input/output error", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    result = embed(str(corpus), store)
    assert counts(result) == {"unchanged": 19, "removed": 1} and "Input/output error" in result.problems[0]
    assert "01.png" in labels(store) and "02.png" not in labels(store)
    monkeypatch.undo()


def test_views_and_other_label_sets_follow_the_listing(corpus: Path, store: Path) -> None:
    embed(str(corpus), store)
    embed(str(corpus), store, EmbedOptions(label_set="other"))
    (corpus / "a" / "00.png").unlink()
    result = embed(str(corpus), store)
    assert result.removed == 1
    assert len(labels(store)) == len(labels(store, "other")) == 29


def test_a_source_however_it_is_typed(corpus: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(corpus.parent)
    for typed in ("corpus", "./corpus/", str(corpus)):
        embed(typed, store)
    assert len(status(FeatureStore(store))["sources"]) == 1
    with pytest.raises(UsageError, match="a source of this store"):
        forget(store, "corps")
    shutil.rmtree(corpus)
    assert forget(store, "corpus")["removed"] == 30


# --- newest is decided by commits


def test_a_run_in_2030_does_not_decide_for_ever(corpus: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2030, 1, 1, tzinfo=UTC)

    monkeypatch.setattr(runs, "datetime", Clock)
    first = embed(str(corpus), store)
    monkeypatch.undo()
    worker_names = sorted(path.name for path in (store / "runs").iterdir())
    assert worker_names == [first.run_id] and first.run_id.startswith("2030")
    corpus_of = Path(str(corpus))
    shutil.copy(corpus_of / "a" / "00.png", corpus_of / "b" / "later.png")  # a later run says otherwise of this content
    from pipelines.embedding import worker

    counting = CountingEngine(8)
    monkeypatch.setattr(worker, "open_engine", lambda *_a, **_o: counting)
    second = embed(str(corpus), store)
    assert second.run_id > first.run_id
    assert dict(zip(dataset(store).ids, dataset(store).y, strict=True))[content_of(store, "later.png")] == "b"


def content_of(store: Path, name: str) -> str:
    rows = FeatureStore(store).catalog.read(["uri", "sha256"]).to_pylist()
    return next(row["sha256"].hex() for row in rows if row["uri"].endswith(name))


# --- two layers, and each column for itself


def test_labels_lie_over_the_source_until_withdrawn(corpus: Path, store: Path, tmp_path: Path) -> None:
    embed(str(corpus), store)
    file = write(tmp_path / "labels.csv", f"path,label\n{corpus}/a/00.png,wolf\n{corpus}/a/03.png,wolf\n")
    result = import_labels(file, store)
    assert (result.rows, result.added, result.changed, result.unchanged) == (2, 0, 2, 0)
    assert result.changes == [{"from": "a", "to": "wolf", "images": 2}]
    assert result.columns == {"path": "path", "label": "label"}
    embed(str(corpus), store)
    embed(str(corpus), store, EmbedOptions(label_set="other"))
    (corpus / "a" / "00.png").rename(corpus / "b" / "00.png")
    (corpus / "b" / "00.png").rename(corpus / "a" / "00.png")
    embed(str(corpus), store)
    assert labels(store)["00.png"] == labels(store)["03.png"] == "wolf"
    taken_back = import_labels(file, store, withdraw=True)
    assert (taken_back.changed, labels(store)["00.png"]) == (2, "a")
    assert import_labels(file, store, withdraw=True).unchanged == 2


def test_a_label_of_people_holds_for_the_copies_too(corpus: Path, store: Path, tmp_path: Path) -> None:
    embed(str(corpus), store)
    import_labels(write(tmp_path / "labels.csv", f"path,label\n{corpus}/a/00.png,wolf\n"), store)
    shutil.copy(corpus / "a" / "00.png", corpus / "b" / "later.png")
    embed(str(corpus), store)
    found = dict(zip(dataset(store).ids, dataset(store).y, strict=True))
    assert found[content_of(store, "later.png")] == "wolf"


def test_columns_that_a_label_file_lacks_say_nothing(corpus: Path, store: Path, tmp_path: Path) -> None:
    rows = [f"corpus/{'abc'[i % 3]}/{i:02}.png,{'xyz'[i % 3]},{'test' if i < 6 else 'train'}" for i in range(30)]
    embed(write(tmp_path / "m.csv", "\n".join(["path,label,split", *rows])), store)
    before_labels, before_splits = labels(store), splits(store)
    assert sum(split == "test" for split in before_splits.values()) == 6
    import_labels(
        write(tmp_path / "g.csv", "path,group\n" + "".join(f"{r.split(',')[0]},g\n" for r in rows[:4])), store
    )
    assert (labels(store), splits(store)) == (before_labels, before_splits)
    data = dataset(store)
    assert data.groups is not None and sum(group == "group:g" for group in data.groups) == 4
    import_labels(write(tmp_path / "l.csv", "path,label\ncorpus/a/00.png,wolf\ncorpus/b/01.png,\n"), store)
    assert splits(store) == before_splits
    assert labels(store) == before_labels | {"00.png": "wolf"}
    import_labels(write(tmp_path / "s.csv", "path,split\ncorpus/a/00.png,train\n"), store)
    assert splits(store) == before_splits | {"00.png": "train"} and labels(store)["00.png"] == "wolf"
    import_labels(str(tmp_path / "s.csv"), store, withdraw=True)
    assert splits(store) == before_splits and labels(store)["00.png"] == "wolf"
    assert dataset(store).groups is not None


def test_sources_that_differ(corpus: Path, store: Path, tmp_path: Path) -> None:
    """Of each column the newest source that names one counts; a folder does not take back a manifest's split."""
    embed(str(corpus), store)
    embed(write(tmp_path / "m.csv", "path,label,split\ncorpus/a/00.png,wolf,test\n"), store)
    embed(str(corpus), store)
    assert labels(store)["00.png"] == "wolf" and splits(store)["00.png"] == "test"
    embed(write(tmp_path / "m.csv", "path,label,split\ncorpus/a/00.png,,test\n"), store)
    assert labels(store)["00.png"] == "a" and splits(store)["00.png"] == "test"
    forget(store, str(tmp_path / "m.csv"))
    assert labels(store)["00.png"] == "a"


# --- stores of format version 1


def as_version_1(store: Path) -> None:
    """Make a store what the penult before sources would have left: one row per image, and nobody said who listed it."""
    opened = FeatureStore(store)
    rows = opened.labels.read(LABELS.names).to_pylist()
    newest = {row["uri"]: row for row in sorted(rows, key=lambda row: row["run_id"])}
    old = [row | {"source": None, "listed": None} for row in newest.values() if row["label"] is not None]
    opened.labels.exchange(
        opened.labels.stage(pa.Table.from_pylist(old, LABELS).to_batches()), Replaced(pa.array(newest))
    )
    opened.remember()
    header = read_sealed(store / "penult.json")
    write_sealed(store / "penult.json", header | {"format_version": 1})


def test_a_store_without_sources_takes_them_from_its_runs(
    corpus: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(f"corpus/b/{number:02}.png,\n" for number in (1, 4))
    monkeypatch.chdir(tmp_path)
    embed(write(tmp_path / "m.csv", "path,label\n" + rows), store)
    embed("corpus/a", store)  # without labels
    embed("corpus/c", store)
    import_labels(write(tmp_path / "l.csv", f"path,label\n{corpus}/c/02.png,wolf\n{corpus}/c/05.png,wolf\n"), store)
    as_version_1(store)
    before = status(FeatureStore(store))
    assert before["sources"] == [{"source": None, "listed": 22, "removed": 0, "failed": 0}]
    assert labels(store) == {"02.png": "wolf", "05.png": "wolf"}
    (corpus / "c" / "02.png").unlink()
    (corpus / "c" / "08.png").unlink()
    monkeypatch.chdir(corpus)
    result = embed("c", store)  # the folder that was called corpus/c then
    monkeypatch.chdir(tmp_path)
    assert (result.listed_before, result.removed) == (10, 2) and labels(store) == {"05.png": "wolf"}
    monkeypatch.chdir(tmp_path)
    assert counts(embed("corpus/c", store)) == {"unchanged": 8}  # there is nothing left to take over
    assert [(row["source"], row["listed"]) for row in status(FeatureStore(store))["sources"]] == [
        ((corpus / "c").as_uri(), 8),
        (None, 12),
    ]
    assert forget(store, None, unknown_origin=True)["removed"] == 12
    assert status(FeatureStore(store))["catalog"]["ok"] == 8
    embed(str(tmp_path / "m.csv"), store)
    assert status(FeatureStore(store))["catalog"]["ok"] == 10


# --- what gc drops


def test_gc_forgets_what_was_removed_long_ago(
    corpus: Path, store: Path, engine: CountingEngine, tmp_path: Path
) -> None:
    embed(str(corpus), store)
    shutil.copy(corpus / "b" / "01.png", corpus / "a" / "copy.png")
    embed(str(corpus), store)
    for name in ("00", "copy"):
        (corpus / "a" / f"{name}.png").rename(tmp_path / f"{name}.png")
    embed(str(corpus), store)
    (table,) = map(FeatureStore(store).table, FeatureStore(store).sets())
    assert gc(store, 3600)["removed images"] == 0 and table.count() == 30
    assert gc(store, 0)["removed images"] == 2
    opened = FeatureStore(store)
    assert (table.count(), opened.catalog.count(), opened.labels.count()) == (29, 29, 29)  # the copy's content stays
    assert status(opened)["sources"] == [{"source": corpus.as_uri(), "listed": 29, "removed": 0, "failed": 0}]
    (tmp_path / "00.png").rename(corpus / "a" / "00.png")
    assert embed(str(corpus), store).embedded == 1 and engine.images == 31
    assert len(labels(store)) == 30


# --- a model of it all


PATHS = [f"{folder}/{number}.png" for folder in "ab" for number in range(3)]


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    listings=st.lists(st.dictionaries(st.sampled_from(PATHS), st.sampled_from(["x", "y", ""])), min_size=1, max_size=4)
)
@example(listings=[{"a/0.png": "x"}, {}, {}])  # empty, and empty again
def test_what_is_trained_on_is_what_was_listed_last(
    listings: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory, engine: CountingEngine
) -> None:
    folder = tmp_path_factory.mktemp("model")
    for number, path in enumerate(PATHS):
        write_picture(folder / path, number)
    seen = False
    for listing in listings:
        write(folder / "m.csv", "\n".join(["path,label", *(f"{path},{label}" for path, label in listing.items())]))
        if not (listing or seen):
            continue
        seen = True
        embed(str(folder / "m.csv"), folder / "store", ALL)
        rows = FeatureStore(folder / "store").label_rows().to_pylist()
        found = {row["uri"].removeprefix(f"{folder.as_uri()}/"): row["label"] for row in rows}
        assert found == {path: label or None for path, label in listing.items()}
        assert status(FeatureStore(folder / "store"))["catalog"]["ok"] == len(listing)


# --- the command line


@pytest.fixture
def penult(store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run a command in this process; its exit code, its JSON and what it said."""

    def run(command: str, *arguments: str | Path) -> tuple[int, Any, str]:
        words = [command, "--store", store, "--json", *arguments]
        monkeypatch.setattr("sys.argv", ["penult", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            commands.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), json.loads(out.splitlines()[-1]) if out else None, err

    return run


def test_what_was_understood_is_said(corpus: Path, penult: Callable[..., Any], tmp_path: Path) -> None:
    code, told, said = penult("embed", corpus)
    assert code == 0 and told["removed"] == 0 and told["source"] == corpus.as_uri() and told["columns"] == {}
    assert told["labels"] == {
        "classes": {"a": 10, "b": 10, "c": 10},
        "class_count": 3,
        "unlabelled": 0,
        "splits": {},
        "changed": [],
    }
    assert "3 classes: a 10, b 10, c 10." in said
    (corpus / "a").rename(corpus / "felines")
    code, told, said = penult("embed", corpus)
    assert code == 0 and told["removed"] == 10 and "10 images removed" in said
    manifest = write(
        tmp_path / "m.csv", "path,label,split\n" + "".join(f"corpus/b/{i:02}.png,dogs,test\n" for i in (1, 4))
    )
    penult("embed", manifest)
    write(tmp_path / "m.csv", "path,label\n" + "".join(f"corpus/b/{i:02}.png,wolves\n" for i in (1, 4)))
    code, told, said = penult("embed", manifest)
    assert told["labels"]["changed"] == [{"from": "dogs", "to": "wolves", "images": 2}]
    assert told["columns"] == {"path": "path", "label": "label"}
    assert "2 labels changed: dogs → wolves 2." in said and "Columns: path, label." in said


def test_of_very_many_classes_the_ends_are_told(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.commands import output

    monkeypatch.setattr(membership, "MAX_CLASSES", 6)
    names = [f"class-{number}" for number in range(9) for _ in range(9 - number)]
    rows = "".join(f"{number}.png,{name}\n" for number, name in enumerate(names))
    result = embed(write(tmp_path / "m.csv", "path,label\n" + rows), store)
    assert result.labels["class_count"] == 9
    assert list(result.labels["classes"]) == [f"class-{number}" for number in (0, 1, 2, 6, 7, 8)]
    output.embedded(result)
    said = capsys.readouterr().err
    assert (
        "9 classes: the largest class-0 9, class-1 8, class-2 7; the smallest class-8 1, class-7 2, class-6 3." in said
    )
    imported = import_labels(str(tmp_path / "m.csv"), store)
    assert imported.class_count == 9 and list(imported.labels) == list(result.labels["classes"])


def test_why_a_label_file_names_nothing_is_said(corpus: Path, penult: Callable[..., Any], tmp_path: Path) -> None:
    penult("embed", corpus)
    code, told, said = penult("label", write(tmp_path / "l.csv", "path,label\ncorpus\\a\\00.png,wolf\n"))
    assert code == 0 and told["unknown"] == 1 and "backslash" in told["problems"][0]
    assert f"Problem: {told['problems'][0]}" in said


def test_several_sources_in_one_command(corpus: Path, penult: Callable[..., Any]) -> None:
    code, told, _ = penult("embed", corpus / "a", corpus / "b")
    assert code == 0 and [one["new"] for one in told["sources"]] == [10, 10]
    _, told, said = penult("status")
    assert [one["listed"] for one in told["sources"]] == [10, 10] and str(corpus / "b") in said
    code, told, said = penult("embed", corpus / "c", corpus / "nothing")
    assert code == 1 and "There is no" in said and "nothing" in said
    assert penult("status")[1]["catalog"]["ok"] == 20  # the mistake in the second is said before the first is begun


def test_words_after_two_dashes_are_the_runners(corpus: Path, penult: Callable[..., Any], store: Path) -> None:
    _, told, _ = penult("embed", corpus / "a", corpus / "b", "--", "--direct_num_workers=1")
    assert [one["new"] for one in told["sources"]] == [10, 10]
    for run in FeatureStore(store).runs():
        assert run.parameters["runner_arguments"] == ["--direct_num_workers=1"]


def test_failed_files_are_named(corpus: Path, penult: Callable[..., Any], tmp_path: Path) -> None:
    write(corpus / "a" / "broken.png", "no image")
    penult("embed", corpus)
    code, told, said = penult("status", "--failed")
    assert code == 0 and "broken.png: not_an_image: " in said
    assert [(Path(row["uri"]).name, row["error_type"]) for row in told["failed"]] == [("broken.png", "not_an_image")]
    assert penult("status", "--failed", "--csv", tmp_path / "failed.csv")[0] == 0
    assert (tmp_path / "failed.csv").read_text().splitlines()[1].split(",")[1] == "not_an_image"
    assert penult("status", "--csv", tmp_path / "x.csv")[0] == 2
    assert "penult status --failed" in penult("status")[2]


def test_too_much_is_missing_on_the_command_line(corpus: Path, penult: Callable[..., Any]) -> None:
    penult("embed", corpus)
    for name in "ab":
        shutil.rmtree(corpus / name)
    code, told, said = penult("embed", corpus)
    assert code == 3 and told["not_removed"] == 20 and "--accept-removed" in said
    assert penult("embed", corpus, "--max-removed", "0.7")[1]["removed"] == 20
    assert penult("embed", corpus, "--max-removed", "2")[0] == 2
    code, told, said = penult("forget", corpus)
    assert code == 0 and told["removed"] == 10 and "10 of them are removed" in said
    assert [run["outcome"] for run in penult("runs")[1]][-1] == "10 images removed"
    assert penult("forget")[0] == penult("forget", corpus, "--unknown-origin")[0] == 2


def test_ambiguous_images_are_named(corpus: Path, penult: Callable[..., Any]) -> None:
    shutil.copy(corpus / "a" / "00.png", corpus / "b" / "copy.png")
    penult("embed", corpus)
    code, told, said = penult("train", "--head", "ncm")
    assert code == 0 and told["excluded"] == {"ambiguous label": 1}
    assert told["ambiguous_uris"] == [(corpus / "a" / "00.png").as_uri()]
    assert f"Left out: 1 with ambiguous label, such as {corpus / 'a' / '00.png'}." in said
    assert np.isfinite(told["test"])


# --- the sums and sentences of one module each


def test_labels_that_changed_are_told_the_most_frequent_first(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counter({("a", "b"): 2, (None, "c"): 5, ("d", None): 1, ("e", "f"): 0})
    told = [
        {"from": None, "to": "c", "images": 5},
        {"from": "a", "to": "b", "images": 2},
        {"from": "d", "to": None, "images": 1},
    ]
    assert membership.changes(counted) == told
    monkeypatch.setattr(membership, "MAX_CHANGES", 2)
    assert membership.changes(counted) == told[:2]


def test_of_very_many_classes_the_ends_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "MAX_CLASSES", 4)
    for count, kept in ((4, [0, 1, 2, 3]), (5, [0, 1, 3, 4]), (9, [0, 1, 7, 8])):
        classes = Counter({str(number): 10 - number for number in range(count)})
        found = membership.largest_and_smallest(classes)
        assert list(found.items()) == [(str(number), 10 - number) for number in kept]


@pytest.mark.parametrize(
    ("recorded", "location", "same"),
    [
        ("/data/photos", "/data/photos", True), ("/data/photos/", "/data/photos", True),
        ("/data/photos", "/data/other", False), ("/photos", "/data/photos", False), ("photos", "/data/photos", True),
        ("./photos/", "/data/photos", True), ("../data/photos", "/data/photos", True), ("tos", "/data/photos", False),
        ("x/photos", "/data/photos", False), ("data/photos", "/photos", False), (".", "/data/photos", False),
        (None, "/data/photos", False), (5, "/data/photos", False), ("~/photos", "/home/~/photos", True),
    ],
)  # fmt: skip
def test_a_source_of_old_is_known_by_how_it_was_typed(recorded: object, location: str, same: bool) -> None:
    assert membership._names(recorded, location) is same


def test_a_source_of_old_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert membership._names(".", str(tmp_path)) and membership._names("x", "~/x") and not membership._names("", "y")


def test_a_label_file_is_counted_in_full(corpus: Path, store: Path, tmp_path: Path) -> None:
    """Labels, splits and groups added, changed or said again; rows of unknown images; and the run's record."""
    rows = [f"{corpus}/{'abc'[i % 3]}/{i:02}.png" for i in range(30)]
    embed(write(tmp_path / "m.csv", "path\n" + "\n".join(rows)), store)  # without labels
    first = write(tmp_path / "1.csv", "path,label\n" + "\n".join(f"{row},x" for row in rows[:14]))
    assert (import_labels(first, store).added, import_labels(first, store).unchanged) == (14, 14)
    lines = [f"{row},y,," for row in rows[:12]]  # other labels
    lines += [f"{rows[12]},x,test,", f"{rows[13]},x,,g"]  # a split and a group, over labels
    lines += [f"{rows[14]},,,g", f"{rows[15]},z,,", f"{rows[16]},,,", f"{tmp_path}/unknown.png,z,train,"]
    second = write(tmp_path / "2.csv", "path,label,split,group\n" + "\n".join(lines))
    result = import_labels(second, store)
    assert result.to_json() == {
        "run_id": result.run_id,
        "label_set": "default",
        "rows": 18,
        "added": 3,
        "changed": 14,
        "unchanged": 1,
        "unknown": 1,
        "labels": {"y": 12, "x": 2, "z": 2},
        "examples": [(Path(row).as_uri(), "x", "y") for row in rows[:10]],
        "class_count": 3,
        "unlabelled": 2,
        "splits": {"test": 1, "train": 1},
        "changes": [{"from": "x", "to": "y", "images": 12}],
        "columns": {"path": "path", "label": "label", "split": "split", "group": "group"},
        "notes": [],
        "problems": [],
    }
    record = FeatureStore(store).runs()[-1]
    assert (record.run_id, record.kind) == (result.run_id, "label")
    assert record.parameters == {"file": second, "label_set": "default", "withdraw": False}
    assert record.result == json.loads(json.dumps(result.to_json()))
    assert import_labels(second, store).unchanged == 18
    with pytest.raises(SourceError) as caught:
        import_labels(str(corpus), store)
    wanted = "Expected: a .csv, .tsv or .parquet file with labels"
    assert str(caught.value) == f"{wanted}. Got: {corpus}, a folder."
    taken_back = import_labels(write(tmp_path / "3.csv", f"path,split\n{rows[12]},\n"), store, withdraw=True)
    assert (taken_back.changed, taken_back.changes) == (1, [])
    assert FeatureStore(store).runs()[-1].parameters["withdraw"] is True
    everything = import_labels(write(tmp_path / "4.csv", f"path\n{rows[13]}\n{rows[0]}\n"), store, withdraw=True)
    assert (everything.changed, everything.changes) == (2, [
        {"from": "x", "to": None, "images": 1}, {"from": "y", "to": None, "images": 1},
    ])  # fmt: skip


def test_an_image_that_one_of_two_sources_drops_is_not_removed(corpus: Path, store: Path, tmp_path: Path) -> None:
    names = [f"corpus/a/{number:02}.png" for number in (0, 3, 6, 9)]
    for name, kept in (("1", names), ("2", names[:2]), ("3", names[2:])):
        embed(write(tmp_path / f"{name}.csv", "path,label\n" + "".join(f"{path},x\n" for path in kept)), store)
    write(tmp_path / "1.csv", f"path,label\n{names[0]},x\n")
    assert counts(embed(str(tmp_path / "1.csv"), store, ALL)) == {"unchanged": 1}
    write(tmp_path / "2.csv", f"path,label\n{names[0]},x\n")
    assert counts(embed(str(tmp_path / "2.csv"), store, ALL))["removed"] == 1
    result = forget(store, str(tmp_path / "3.csv"))
    record = FeatureStore(store).runs()[-1]
    assert result == {
        "run_id": record.run_id,
        "source": (tmp_path / "3.csv").as_uri(),
        "images": 2,
        "removed": 2,
    }
    assert (record.kind, record.parameters, record.result) == ("forget", {"source": str(tmp_path / "3.csv")}, result)


def test_a_source_that_is_not_there_names_those_that_are(corpus: Path, store: Path, tmp_path: Path) -> None:
    FeatureStore.create(store)
    with pytest.raises(UsageError) as caught:
        forget(store, "x")
    assert str(caught.value) == "Expected: a source of this store, of which it has none. Got: x."
    for name in ("b", "a"):
        embed(str(corpus / name), store)
    with pytest.raises(UsageError) as caught:
        forget(store, "x")
    there = f"one of {(corpus / 'a').as_uri()}, {(corpus / 'b').as_uri()}"
    assert str(caught.value) == f"Expected: a source of this store, {there}. Got: x."
    assert forget(store, (corpus / "a").as_uri())["images"] == 10
    for arguments in ((None, False), ("x", True)):
        with pytest.raises(UsageError, match=r"^Name one source, or give --unknown-origin\.$"):
            forget(store, arguments[0], unknown_origin=arguments[1])


@pytest.mark.parametrize("command", ["label", "forget"])
def test_what_a_dead_run_had_finished_is_counted(store: Path, tmp_path: Path, command: str) -> None:
    opened = FeatureStore.create(store)
    with opened.lock():
        journal(opened, "20260101T000000-embed-000000", [pictures(range(9))])
    if command == "label":
        file = write(tmp_path / "l.csv", "uri,label\nfile:///0,x\n")
        assert import_labels(file, store).unknown == 1  # its uris are no files of this store
    else:
        with pytest.raises(UsageError):
            forget(store, "nothing")
    assert FeatureStore(store).catalog.count() == 9
