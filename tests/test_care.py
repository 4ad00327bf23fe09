"""verify and doctor: what they say, and what they leave to the user."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import CountingEngine
from featurestore.errors import (
    BackboneError,
    EngineError,
    SourceError,
    SpecMismatch,
    StoreCorrupt,
    StoreNotFound,
    UsageError,
)
from featurestore.files import write_sealed
from featurestore.store import FeatureStore
from featurestore.tables import Table
from featurestore.verify import REPAIR
from pipelines import cli, restore
from pipelines.care import DoctorResult, doctor, gc, verify
from pipelines.embed import EmbedOptions, embed
from pipelines.labels import import_labels


@pytest.fixture
def store(corpus: Path, tmp_path: Path, engine: CountingEngine) -> Path:
    """A store with the features of thirty pictures, in fragments of ten."""
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
            cli.main()
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


def test_a_whole_feature_set_is_gone(store: Path, engine: CountingEngine) -> None:
    before, name = FeatureStore(store).features(), FeatureStore(store).resolve()
    shutil.rmtree(features(store))
    assert [finding.path for finding in verify(store)] == [f"features/{name}.lance"]
    result = doctor(store)
    assert result.embedded == engine.images == 30 and FeatureStore(store).resolve() == name
    assert all(np.array_equal(*pair) for pair in zip(before, FeatureStore(store).features(), strict=True))


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


def test_whatever_keeps_pictures_from_being_embedded_anew_is_told(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_files(features(store))[0].unlink()
    name = FeatureStore(store).resolve()
    for error in (BackboneError, EngineError, SourceError, SpecMismatch, StoreNotFound, UsageError):

        def fail(*_: Any, error: type[Exception] = error, **__: Any) -> None:
            raise error("for a reason")

        monkeypatch.setattr(restore, "embed", fail)
        result = doctor(shutil.copytree(store, tmp_path / error.__name__))
        assert result.todo == [f"`penult embed` again 10 pictures of {name} that were lost: for a reason"]
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
