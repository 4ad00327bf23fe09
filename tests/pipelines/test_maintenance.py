"""verify and doctor: what they say, and what they leave to the user."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import CountingEngine, write_picture
from featurestore.errors import (
    BackboneError,
    EngineError,
    SourceError,
    SpecMismatch,
    StoreCorrupt,
    StoreNotFound,
    UsageError,
)
from featurestore.maintenance.repair import Repair
from featurestore.maintenance.verify import REPAIR
from featurestore.runs import RunRecord
from featurestore.storage.files import write_sealed
from featurestore.storage.npz import write_npz
from featurestore.storage.table import Table
from featurestore.store import FeatureStore
from heads import artifact
from heads.registry import fit
from heads.spec import HeadSpec
from pipelines import commands, maintenance, recovery
from pipelines.embedding.embed import embed
from pipelines.embedding.labels import import_labels
from pipelines.images.augmentation import Augmentation
from pipelines.maintenance import DoctorResult, doctor, gc, verify
from pipelines.options import EmbedOptions


@pytest.fixture
def store(corpus: Path, tmp_path: Path, engine: CountingEngine) -> Path:
    """A store with the features of thirty images, in fragments of ten."""
    embed(str(corpus), tmp_path / "store", EmbedOptions(shard_images=10))
    engine.images = 0
    return tmp_path / "store"


def features(store: Path) -> Path:
    (table,) = (store / "features").iterdir()
    return table


def data_files(table: Path) -> list[Path]:
    return sorted((table / "data").iterdir(), key=lambda path: path.stat().st_mtime_ns)


def labels(store: Path) -> dict[str, str]:
    table = FeatureStore(store).label_rows()
    return dict(zip(table["uri"].to_pylist(), table["label"].to_pylist(), strict=True))


@pytest.fixture
def penult(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any, str]]:
    """Runs a command in this process: its exit code, its JSON and what it says."""

    def run(*arguments: str | Path) -> tuple[int, Any, str]:
        monkeypatch.setattr("sys.argv", ["penult", *map(str, arguments), "--json"])
        with pytest.raises(SystemExit) as ended:
            commands.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), json.loads(out.splitlines()[-1]), err

    return run


def test_no_store(tmp_path: Path) -> None:
    for command in (verify, doctor):
        with pytest.raises(StoreNotFound, match="no penult store"):
            command(tmp_path)


def test_a_set_that_a_killed_run_had_begun_to_make(store: Path) -> None:
    """Lance writes its transaction first, when there is no table yet; its ledger comes last."""
    half = store / "features" / "other-00000000.lance"
    (half / "_transactions").mkdir(parents=True)
    (half / "_transactions" / "0-x.txn").write_bytes(b"begun")
    assert verify(store) == [] and doctor(store) == DoctorResult()
    gc(store, older_than=3600)
    assert half.exists()  # a run may be at it
    gc(store, older_than=0)
    assert not half.exists() and verify(store) == []
    Table(half).create(FeatureStore(store).labels.schema)
    (half / "ledger.json").unlink()
    assert verify(store) == [] and doctor(store) == DoctorResult()


def test_on_the_command_line(store: Path, penult: Callable[..., tuple[int, Any, str]]) -> None:
    assert penult("verify", "--store", store)[:2] == (0, [])
    manifest = max((features(store) / "_versions").glob("*.manifest"))  # the first version's, which nobody needs
    manifest.write_bytes(manifest.read_bytes()[::-1])
    code, (finding,), said = penult("verify", "--store", store)
    assert code == 1 and "penult doctor" in said
    assert finding["path"] == manifest.relative_to(store).as_posix()
    code, mended, _ = penult("doctor", "--store", store)
    (repair,) = mended["repairs"]
    assert code == 0 and repair["put_aside"] == [f"_versions/{manifest.name}"] and not repair["lost"]
    assert penult("verify", "--store", store)[:2] == (0, [])
    (aside,) = (store / "damaged").rglob("*.manifest")
    assert aside.name == manifest.name


def test_no_manifest_is_left(store: Path, engine: CountingEngine) -> None:
    """The data files say what a feature set is, and hold all of its rows."""
    before = FeatureStore(store).features()
    shutil.rmtree(features(store) / "_versions")
    doctor(store)
    assert engine.images == 0
    assert all(np.array_equal(*pair) for pair in zip(before, FeatureStore(store).features(), strict=True))
    assert verify(store) == []


def test_a_source_that_was_named_by_its_uri_is_read_again(corpus: Path, tmp_path: Path, engine: CountingEngine) -> None:
    store = tmp_path / "store"
    embed(corpus.as_uri(), store)
    shutil.rmtree(features(store))
    shutil.rmtree(store / "labels.lance")
    result = doctor(store)
    assert result.embedded == 30 and engine.images == 60 and verify(store) == []
    assert sorted(labels(store).values()) == sorted("abc" * 10)


def test_a_whole_feature_set_is_gone(store: Path, engine: CountingEngine) -> None:
    before, name = FeatureStore(store).features(), FeatureStore(store).resolve()
    shutil.rmtree(features(store))
    assert [finding.path for finding in verify(store)] == [f"features/{name}.lance"]
    result = doctor(store)
    assert result.embedded == engine.images == 30 and FeatureStore(store).resolve() == name
    assert all(np.array_equal(*pair) for pair in zip(before, FeatureStore(store).features(), strict=True))


def test_a_view_comes_back_where_those_before_it_stayed(store: Path, corpus: Path, engine: CountingEngine) -> None:
    options = EmbedOptions(views=2, augmentation=Augmentation(rotation=30, seed=1))
    name = embed(str(corpus), store, options).feature_set
    table, engine.images = FeatureStore(store).table(name), 0
    before = table.read(["sha256", "view", "vector"]).sort_by([("sha256", "ascending"), ("view", "ascending")])
    (file,) = data_files(table.path)
    data, second = bytearray(file.read_bytes()), before.column("vector")[1].as_py()
    assert before.column("view").to_pylist()[:3] == [1, 2, 1]
    data[data.index(np.array(second, np.float16).tobytes()) + 5] ^= 1
    file.write_bytes(data)
    result = doctor(store)
    assert (result.embedded, engine.images, [repair.lost for repair in result.repairs]) == (1, 1, [0])
    after = table.read(["sha256", "view", "vector"]).sort_by([("sha256", "ascending"), ("view", "ascending")])
    assert after == before and verify(store) == []


def test_catalog_and_features_come_back_together(store: Path, engine: CountingEngine) -> None:
    before = FeatureStore(store).features()
    shutil.rmtree(features(store))
    for path in data_files(store / "catalog.lance"):
        path.write_bytes(b"")
    assert doctor(store).embedded == engine.images == 30
    assert all(np.array_equal(*pair) for pair in zip(before, FeatureStore(store).features(), strict=True))
    assert FeatureStore(store).catalog.count() == 30 and verify(store) == []


def test_what_was_never_embedded_is_no_lost_row_of_the_catalog(
    store: Path, corpus: Path, engine: CountingEngine
) -> None:
    write_picture(corpus / "a" / "new.png", 99)
    for path in data_files(store / "catalog.lance"):
        path.write_bytes(b"")
    doctor(store)
    uris = FeatureStore(store).catalog.read(["uri"]).column("uri").to_pylist()
    assert engine.images == 0 and sorted(uris) == sorted(labels(store)) and len(uris) == 30


def test_pictures_that_are_gone_cannot_come_back(store: Path, corpus: Path) -> None:
    file = data_files(features(store))[0]
    file.unlink()
    shutil.rmtree(corpus)
    result = doctor(store)
    assert result.embedded == 0 and [repair.lost for repair in result.repairs] == [10]
    (told,) = result.todo
    assert f"`penult embed {corpus}`" in told
    assert verify(store) == [] and doctor(store) == DoctorResult()


def test_labels_come_from_the_newest_source(store: Path, corpus: Path, tmp_path: Path) -> None:
    """And from no older file where that cannot be read any more: the sources' own labels count until it is there."""
    file = tmp_path / "labels.csv"
    file.write_text("path,label\n" + "".join(f"{path},new\n" for path in sorted(corpus.rglob("*.png"))[:20]))
    import_labels(str(file), store)
    before = labels(store)
    (newest,) = (piece for piece in FeatureStore(store).labels.pieces() if piece.rows == 20)
    (store / "labels.lance" / newest.data[0]).write_bytes(b"")
    shutil.copytree(store, tmp_path / "other")
    doctor(store)
    assert labels(store) == before
    file.unlink()
    result = doctor(tmp_path / "other")
    assert labels(tmp_path / "other") == {uri: Path(uri).parent.name for uri in before}
    assert f"`penult label {file}`" in result.todo[0]


@pytest.mark.parametrize("asked", [True, False, None], ids=["splits", "classes", "an older penult's"])
def test_splits_come_from_folders_as_the_run_read_them(
    tmp_path: Path, engine: CountingEngine, asked: bool | None
) -> None:
    for number, (split, name) in enumerate([("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")]):
        write_picture(tmp_path / "corpus" / split / name / f"{number}.png", number)
    store = tmp_path / "store"
    embed(str(tmp_path / "corpus"), store, EmbedOptions(split_folders=asked is not False))
    before = FeatureStore(store).label_rows().to_pylist()
    assert {row["split"] for row in before} == ({None} if asked is False else {"train", "val"})
    if asked is None:  # it has recorded no such parameter
        opened = FeatureStore(store)
        (record,) = opened.runs()
        del record.parameters["split_folders"]
        record.write(opened.run_folder(record.run_id))
    for path in data_files(store / "labels.lance"):
        path.write_bytes(b"")
    doctor(store)
    assert FeatureStore(store).label_rows().to_pylist() == before


def test_what_was_embedded_without_being_listed_does_not_become_a_source(
    store: Path, corpus: Path, tmp_path: Path
) -> None:
    """As a fine-tuning embeds the images that it was trained on."""
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("path\n" + "".join(f"{path}\n" for path in sorted(corpus.rglob("*.png"))[:20]))
    embed(str(manifest), store, EmbedOptions(dtype="float32"), as_source=False)
    before, said = FeatureStore(store).sources(), labels(store)
    for path in data_files(store / "labels.lance"):
        path.write_bytes(b"")
    doctor(store)
    assert FeatureStore(store).sources() == before and list(before) == [corpus.as_uri()] and labels(store) == said


def test_whatever_keeps_pictures_from_being_embedded_anew_is_told(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_files(features(store))[0].unlink()
    name = FeatureStore(store).resolve()
    for error in (BackboneError, EngineError, SourceError, SpecMismatch, StoreNotFound, UsageError):

        def fail(*_: Any, error: type[Exception] = error, **__: Any) -> None:
            raise error("for a reason")

        monkeypatch.setattr(recovery, "embed", fail)
        result = doctor(shutil.copytree(store, tmp_path / error.__name__))
        assert result.todo == [f"`penult embed` again 10 images of {name} that were lost: for a reason"]
        assert result.embedded == 0


@pytest.mark.parametrize("then", ["all withdrawn", "some images withdrawn", "a column withdrawn", "a column added"])
def test_people_have_said_what_they_had_said(store: Path, corpus: Path, tmp_path: Path, then: str) -> None:
    """All label files are read again in their order, and none is taken for what it says alone."""
    images = [str(path) for path in sorted(corpus.rglob("*.png"))[:20]]
    first = "path,label\n" if then == "a column added" else "path,label,split\n"
    first += "".join(f"{path},new{',test' * (then != 'a column added')}\n" for path in images)
    splits = "path,split\n" + "".join(f"{path},test\n" for path in images[:15])
    some = "".join(first.splitlines(keepends=True)[:8])
    second = {"all withdrawn": first, "some images withdrawn": some}.get(then, splits)
    for name, text in (("first.csv", first), ("second.csv", second)):
        (tmp_path / name).write_text(text)
        import_labels(str(tmp_path / name), store, withdraw=name == "second.csv" and "withdrawn" in then)
    before = FeatureStore(store).dataset()
    for path in data_files(store / "labels.lance"):
        path.write_bytes(b"")
    assert doctor(store).todo == []
    after = FeatureStore(store).dataset()
    assert after.y.tolist() == before.y.tolist() and after.splits.tolist() == before.splits.tolist()


def test_an_interrupted_repair_is_told_of(store: Path) -> None:
    write_sealed(store / REPAIR, {"rows": {}, "lost": {}, "last_set": FeatureStore(store).resolve()})
    assert [finding.path for finding in verify(store)] == [REPAIR]
    doctor(store)
    assert verify(store) == []


def test_a_damaged_key_is_no_missing_image(store: Path) -> None:
    """It is refused, not left out of a dataset."""
    file = data_files(features(store))[0]
    key = next(FeatureStore(store).table(features(store).stem).file_rows([f"data/{file.name}"])).column("sha256")[0]
    data = bytearray(file.read_bytes())
    data[data.index(key.as_py())] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreCorrupt, match="checksum"):
        FeatureStore(store).dataset()


# --- what runs have made, each kind by itself


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """A store without images that holds one of each: a run, a head, a backbone with its run, an outcome, a tuning."""
    store = FeatureStore.create(tmp_path / "store").path
    for kind in ("embed", "train", "finetune"):
        run_id = f"20260102T030405-{kind}-abcdef"
        RunRecord(run_id, kind, "2026-01-02", {}, {}).write(store / "runs" / run_id)
        if kind != "embed":
            head = fit(HeadSpec("ncm"), np.eye(4, dtype=np.float32), np.array(list("abab")))
            artifact.save(head, store / "runs" / run_id, {})
    weights = b"no weights, but of this digest"
    digest = hashlib.sha256(weights).hexdigest()
    (store / "backbones").mkdir()
    (store / "backbones" / f"{digest}.weights.h5").write_bytes(weights)
    write_sealed(store / "backbones" / f"{run_id}.json", {"id": run_id, "sha256": digest})
    for folder in ("results/ab", "finetune/x"):
        (store / folder).mkdir(parents=True)
    write_sealed(store / "results/ab/abc.json", {"key": "abc"})
    artifact.save(head, store / "results/heads/abc", {})
    write_sealed(store / "finetune/x/begun.json", {"run_id": "x"})
    write_npz(store / "finetune/x/checkpoint.npz", {"a": np.zeros(9)})
    assert verify(store) == []
    return store


@pytest.mark.parametrize(
    ("damaged", "aside", "todo"),
    [
        ("runs/R-embed/run.json", ["runs/R-embed"], ""),
        ("runs/R-train/run.json", ["runs/R-train"], "`penult train` again"),
        ("runs/R-train/head.json", ["runs/R-train"], "`penult train` again"),
        ("runs/R-train/head.npz", ["runs/R-train"], "`penult train` again"),
        ("runs/R-finetune/head.npz", ["runs/R-finetune"], "`penult finetune` again"),
        ("backbones/R-finetune.json", ["backbones/R-finetune.json", "runs/R-finetune"], "`penult finetune` again"),
        (
            "backbones/WEIGHTS",
            ["backbones/R-finetune.json", "runs/R-finetune", "backbones/WEIGHTS"],
            "`penult finetune`",
        ),
        ("results/ab/abc.json", ["results/ab/abc.json"], ""),
        ("results/heads/abc/head.json", ["results/heads/abc"], ""),
        ("results/heads/abc/head.npz", ["results/heads/abc"], ""),
        ("finetune/x/begun.json", ["finetune/x"], "`penult finetune` again"),
        ("finetune/x/checkpoint.npz", ["finetune/x"], "`penult finetune` again"),
    ],
)
def test_what_is_damaged_is_found_and_put_aside_with_what_is_of_no_use_without_it(
    artifacts: Path, damaged: str, aside: list[str], todo: str
) -> None:
    (weights,) = (artifacts / "backbones").glob("*.weights.h5")

    def named(path: str) -> str:
        run = path.partition("R-")[2].partition("/")[0].partition(".")[0]
        return path.replace(f"R-{run}", f"20260102T030405-{run}-abcdef").replace("WEIGHTS", weights.name)

    damage(artifacts / named(damaged))
    found = [finding.path for finding in verify(artifacts)]
    assert named(damaged).replace("head.npz", "head.json") in found
    contents = {path: (artifacts / path).is_dir() for path in map(named, aside)}
    result = doctor(artifacts)
    assert sorted(result.artifacts) == sorted(contents) and not result.repairs
    for path, is_folder in contents.items():
        assert not (artifacts / path).exists()
        (kept,) = (artifacts / "damaged").glob(f"*/{path}")
        assert kept.is_dir() is is_folder
    assert [
        todo in told and told.endswith("was damaged, and what it belongs to is put aside.") for told in result.todo
    ] == ([True] * len(result.todo))
    assert bool(result.todo) == bool(todo)
    assert verify(artifacts) == []


def test_a_backbone_is_its_own_description_and_weights(artifacts: Path) -> None:
    """What is not named by a digest is still being written; a description whose weights or id differ is another's."""
    (weights,) = (artifacts / "backbones").glob("*.weights.h5")
    (artifacts / "backbones" / "unfinished.weights.h5").write_bytes(b"half")
    assert verify(artifacts) == []
    (described,) = (artifacts / "backbones").glob("*.json")
    digest = weights.name.removesuffix(".weights.h5")
    for told in (
        {"id": "other", "sha256": digest},
        {"id": described.stem, "sha256": digest[:-1]},
        {"id": described.stem},
    ):
        write_sealed(described, told)
        (finding,) = verify(artifacts)
        said = f"Expected: the description of backbone {described.stem} in {described}. Got: another."
        assert (finding.path, finding.problem) == (f"backbones/{described.name}", str(StoreCorrupt(said)))
    write_sealed(described, {"id": described.stem, "sha256": digest})
    weights.write_bytes(b"others")
    other = hashlib.sha256(b"others").hexdigest()
    said = f"{weights}: Expected: sha256 {digest}. Got: {other}."
    assert {finding.problem for finding in verify(artifacts)} == {str(StoreCorrupt(said))}
    described.unlink()  # a run that made a backbone which nothing describes
    assert f"backbones/{described.name}" in [finding.path for finding in verify(artifacts)]


def test_an_outcome_is_of_its_own_name(artifacts: Path) -> None:
    path = artifacts / "results/ab/abc.json"
    write_sealed(path, {"score": 1})  # older ones do not say
    assert verify(artifacts) == []
    write_sealed(path, {"key": "abd"})
    (finding,) = verify(artifacts)
    said = f"Expected: the outcome abc in {path}. Got: abd."
    assert (finding.path, finding.problem) == ("results/ab/abc.json", str(StoreCorrupt(said)))
    path.write_text('{"key": "abc"}')  # without a seal
    assert len(verify(artifacts)) == 1


def test_what_went_back_to_an_older_version_is_to_be_done_again() -> None:
    repairs = [
        Repair("catalog.lance", back_to=0, lost=1),
        Repair("labels.lance", back_to=3, lost=2),
        Repair("catalog.lance", lost=1),
        Repair("labels.lance", back_to=3),
        Repair("features/x.lance", back_to=1, lost=1),
    ]
    assert maintenance._stale(repairs) == [
        "`penult embed` what has changed lately: catalog.lance is as it was before that.",
        "`penult label` or `embed` what has changed lately: labels.lance is as it was before that.",
    ]


def test_cleaning_up_says_how_many_images_it_forgot(store: Path, corpus: Path) -> None:
    (corpus / "a" / "00.png").unlink()
    embed(str(corpus), store)
    with pytest.raises(UsageError, match="--older-than in seconds"):
        gc(store, -1)
    assert gc(store, 3600)["removed images"] == 0
    freed = gc(store, 0)
    assert freed["removed images"] == 1 and len(freed) > 1
    assert FeatureStore(store).catalog.count() == 29
