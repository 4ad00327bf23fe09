"""A set's canary: numbers of another formula, other weights or another library are refused, not mixed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from decoding import decoded
from PIL import Image
from sklearn.datasets import load_digits

import seeded
from conftest import CountingEngine, write_picture
from featurestore import canary as kept
from featurestore.canary import Canary
from featurestore.errors import FormatError, SpecMismatch, StoreCorrupt, StoreError
from featurestore.runs import RunRecord
from featurestore.spec import Preprocessing
from featurestore.storage.files import write_sealed
from featurestore.store import FeatureStore
from pipelines import predict as predicting
from pipelines.backbones import canary
from pipelines.backbones.engine_options import EngineOptions
from pipelines.embedding import beam, worker
from pipelines.embedding.embed import embed
from pipelines.export import export
from pipelines.finetuning.finetune import finetune
from pipelines.images import views
from pipelines.images.augmentation import Augmentation
from pipelines.maintenance import doctor, gc, verify
from pipelines.options import EmbedOptions, FinetuneOptions, PredictOptions, TrainOptions
from pipelines.predict import predict
from pipelines.training import train_head

SHA256 = {
    "canary.jpg": "6e4789807a99ac6f4819a8829eca130341341d8550882166acec982fd6412e4c",
    "canary.png": "06af1d8543ae8c3ba18715bd913bc3e4a305176aa086f36daa54a3c79f2f92bd",
}
VIEWS = EmbedOptions(views=2, augmentation=Augmentation(rotation=30, zoom=0.2, seed=1))


def picture(name: str) -> bytes:
    return (Path(canary.__file__).parent / name).read_bytes()


def canary_of(store: Path) -> Path:
    (path,) = store.glob("features/*.lance/canary.json")
    return path


def told(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text())
    del value["seal"]
    return value


def digests(store: Path) -> dict[str, str]:
    files = [path for path in store.rglob("*") if path.is_file() and path.name != "lock"]
    return {path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def other_numbers(monkeypatch: pytest.MonkeyPatch, factor: float = 1.005) -> None:
    """What a library might do: one number of every vector is another."""
    plain = CountingEngine.__call__

    def other(self: CountingEngine, pixels: np.ndarray) -> np.ndarray:
        vectors = plain(self, pixels)
        vectors[:, 5] *= factor
        return vectors

    monkeypatch.setattr(CountingEngine, "__call__", other)


@pytest.fixture
def store(corpus: Path, tmp_path: Path, engine: CountingEngine) -> Path:
    """A store with the features of thirty images; the engine's counts begin after it."""
    embed(str(corpus), tmp_path / "store")
    engine.images = engine.canaries = 0
    return tmp_path / "store"


# --- what is kept


@pytest.mark.parametrize("name", canary.PICTURES)
def test_the_pictures_never_change(name: str) -> None:
    assert hashlib.sha256(picture(name)).hexdigest() == SHA256[name]


def test_a_set_keeps_the_vectors_of_the_pictures_and_where_they_were_computed(store: Path) -> None:
    canary_then = kept.read(canary_of(store).parent)
    assert canary_then is not None and list(canary_then.vectors) == list(canary.PICTURES)
    for name, vector in canary_then.vectors.items():
        expected = CountingEngine(8)(decoded(picture(name), 224).pixels[None])[0]
        assert vector.dtype == np.float32 and np.array_equal(vector, expected)
    assert canary_then.versions.keys() == set(kept.LIBRARIES)
    assert canary_then.versions["numpy"] == np.__version__ and canary_then.processor


def test_it_is_asked_once_a_run_and_never_where_nothing_is_embedded(
    store: Path, corpus: Path, engine: CountingEngine
) -> None:
    embed(str(corpus), store)
    assert (engine.images, engine.canaries) == (0, 0)
    before = canary_of(store).read_bytes()
    for number in range(3):
        write_picture(corpus / "a" / f"new{number}.png", 100 + number)
    embed(str(corpus), store, EmbedOptions(shard_images=1))
    assert (engine.images, engine.canaries) == (3, 1)
    assert canary_of(store).read_bytes() == before


def test_other_tools_and_cleaning_up_leave_it_alone(store: Path, corpus: Path) -> None:
    import lancedb  # takes seconds, and no other test here needs it

    before, name = canary_of(store).read_bytes(), FeatureStore(store).resolve()
    for number in range(20):  # fragments enough to be merged
        write_picture(corpus / "a" / f"new{number}.png", 100 + number)
    embed(str(corpus), store, EmbedOptions(shard_images=1))
    canary_of(store).with_name(".canary.json.1.tmp").write_text("of a run that was killed")
    gc(store, older_than=0)
    assert sorted(path.name for path in canary_of(store).parent.iterdir() if path.is_file()) == [
        "canary.json",
        "ledger.json",
    ]
    assert lancedb.connect(store / "features").open_table(name).count_rows() == 50
    assert canary_of(store).read_bytes() == before and verify(store) == [] and doctor(store).repairs == []


# --- what is compared


def test_limits() -> None:
    vector = np.array([3.0, 4.0, 0.0], np.float32)
    then = Canary({"a": vector})

    def agrees(now: list[float], precision: str = "f32") -> bool:
        try:
            kept.compare("set", then, replace(then, vectors={"a": np.array(now, np.float32)}), precision)
        except SpecMismatch:
            return False
        return True

    assert agrees([3, 4, 0]) and agrees([3, 4, 0.0049]) and agrees([3.0029, 4.0039, 0])
    assert not agrees([3, 4, 0.0051]) and not agrees([3.0031, 4.0041, 0])  # a cosine of 0.9999995, and of 1
    assert agrees([3, 4, 0.99], "bf16") and not agrees([3, 4, 1.01], "bf16")
    assert not any(agrees(now) for now in ([3, 4, np.nan], [3, np.inf, 0], [0, 0, 0], [3, 4], [3, 4, 0, 0]))
    assert kept.deviation(vector * 0, vector * 0) == 0 and kept.deviation(vector * 0, vector) == np.inf


def test_how_far_vectors_are_apart() -> None:
    def said(then: list[float], now: list[float]) -> str:
        return kept.described(np.array(then, np.float32), np.array(now, np.float32))

    assert said([3, 4], [4, 3]) == "off by 28.28% (cosine 0.960000)"  # the root of 2, of 5; 24 of 25
    assert said([3, 4], [-6, -8]) == "off by 300.00% (cosine -1.000000)"
    assert said([0, 0], [0, 0]) == "off by 0.00% (cosine 1.000000)"
    assert said([0, 0], [0, 1]) == "off by inf% (cosine 0.000000)"
    assert said([1, 2, 3], [1, 2]) == "of 2 numbers instead of 3"
    two = {name: np.ones(2, np.float32) for name in ("a", "b")}
    with pytest.raises(
        SpecMismatch, match=r"when set was made, within 0\.1% of .*Got: b of 0 numbers instead of 2, with"
    ):
        kept.compare("set", Canary(two), Canary({"a": two["a"]}), "f32")
    kept.compare("set", Canary({"a": two["a"]}), Canary(two), "f32")
    with pytest.raises(SpecMismatch, match=r"within 20\.0% of .*Got: a off by 100\.00% .*, b off by"):
        kept.compare("set", Canary(two), Canary({name: 2 * vector for name, vector in two.items()}), "bf16")


def test_what_has_changed_since() -> None:
    same = "with the same libraries and processor, so the code, the weights or the cached graph have changed"
    other = "go back to what it was, or embed everything into another --store"
    then = Canary({}, {"pillow": "11", "numpy": "2"}, "A")
    for versions, processor, words in (
        ({"pillow": "11", "numpy": "2"}, "A", same),
        ({"pillow": "11"}, "A", same),
        ({"pillow": "11", "numpy": "2", "more": "1"}, "A", same),
        ({"pillow": "12", "numpy": "3"}, "A", f"with numpy 3 instead of 2, pillow 12 instead of 11: {other}"),
        ({"pillow": "11", "numpy": "2"}, "B", f"with the processor B instead of A: {other}"),
    ):
        assert kept.changes(then, Canary({}, versions, processor)).startswith(words)
    assert kept.changes(Canary({}, {}, ""), Canary({}, {}, "B")).startswith(same)


def test_the_name_of_the_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also one of bytes that are no UTF-8: the system passes on what the processor says."""
    told = tmp_path / "cpuinfo"
    monkeypatch.setattr(kept, "Path", {"/proc/cpuinfo": told}.__getitem__)
    monkeypatch.setattr("platform.machine", lambda: "m1")
    monkeypatch.setattr("platform.processor", lambda: "p1")
    assert Canary({}, {}).processor == "p1 m1"
    for text, name in (
        (b"a: 1\nmodel name\t: A: B \nmodel name\t: C", "A: B m1"),
        (b"cpu: 7", "p1 m1"),
        (b"model name\t: A\xae B", "A\ufffd B m1"),
    ):
        told.write_bytes(text)
        assert Canary({}, {}).processor == name


WRONG_CANARIES = [
    *({"vectors": value} for value in (None, [], {"a": 3}, {"a": "x"}, {"a": "AAAA"})),
    *({"versions": value} for value in (None, 3, ["ab c"])),
    *({"set": value} for value in (None, "other")),
]


@pytest.mark.parametrize("values", WRONG_CANARIES, ids=str)
def test_a_canary_that_no_penult_writes(tmp_path: Path, values: dict[str, Any]) -> None:
    table = tmp_path / "set-1.lance"
    table.mkdir()
    assert kept.read(table) is None
    canary_now = Canary({"a": np.arange(3, dtype=np.float32)}, {"numpy": "2"}, "A")
    kept.write(table, canary_now)
    back = kept.read(table)
    assert back is not None and back.vectors["a"].tolist() == [0, 1, 2]
    assert (back.versions, back.processor) == ({"numpy": "2"}, "A")
    sound = told(table / "canary.json")
    assert (sound["set"], sound["format"]) == ("set-1", 1)
    write_sealed(table / "canary.json", sound | values)
    with pytest.raises(StoreCorrupt, match=r"another set's|vectors, versions, processor"):
        kept.read(table)
    for name in ("vectors", "versions", "processor"):
        write_sealed(table / "canary.json", {key: value for key, value in sound.items() if key != name})
        with pytest.raises(StoreCorrupt, match="vectors, versions, processor"):
            kept.read(table)
    for newer in (2, 10):
        write_sealed(table / "canary.json", sound | {"format": newer})
        with pytest.raises(FormatError, match=rf"has format {newer}, this penult reads 1: install a newer"):
            kept.read(table)


def test_the_sentence_says_what_differs(store: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_picture(corpus / "a" / "new.png", 100)
    other_numbers(monkeypatch)
    with pytest.raises(SpecMismatch, match=r"canary.png off by 0.15% \(cosine 0.999999\).*--store\.$"):
        embed(str(corpus), store)
    path = canary_of(store)
    value = told(path)
    value["versions"]["openvino"] = "2019.1"
    write_sealed(path, value | {"processor": "Z80"})
    now = Canary({})
    with pytest.raises(SpecMismatch) as refused:
        embed(str(corpus), store)
    assert f"openvino {now.versions['openvino']} instead of 2019.1" in str(refused.value)
    assert f"the processor {now.processor} instead of Z80: go back" in str(refused.value)
    assert "\n" not in str(refused.value) and "numpy" not in str(refused.value)


# --- who compares


def test_a_refused_run_changes_nothing(store: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_picture(corpus / "new class" / "new.png", 100)
    before = digests(store)
    with monkeypatch.context() as patch:
        other_numbers(patch)
        with pytest.raises(SpecMismatch, match="canary"):
            embed(str(corpus), store)
    assert digests(store) == before
    assert embed(str(corpus), store).embedded == 1


def test_a_worker_on_another_machine_asks_for_itself(
    store: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, engine: CountingEngine
) -> None:
    """The driver found nothing wrong; this process would."""
    write_picture(corpus / "a" / "new.png", 100)
    monkeypatch.setattr(worker, "settle_canary", lambda _: other_numbers(monkeypatch) or 0.01)
    with pytest.raises(SpecMismatch, match="canary"):
        embed(str(corpus), store)
    assert engine.images == 0 and FeatureStore(store).table(canary_of(store).parent.stem).count() == 30


def test_predicting_with_stored_features_needs_no_engine(
    store: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: CountingEngine
) -> None:
    train_head(store, TrainOptions("ncm"))
    monkeypatch.setattr(predicting, "open_engine", lambda *_args, **_options: engine)
    known = predict([str(corpus / "a" / "00.png")], store)
    assert known[0].label and (engine.images, engine.canaries) == (0, 0)
    new = write_picture(tmp_path / "new.png", 100)
    assert predict([str(new)], store)[0].label and (engine.images, engine.canaries) == (1, 1)
    other_numbers(monkeypatch)
    assert predict([str(corpus / "a" / "00.png")], store) == known
    with pytest.raises(SpecMismatch, match="canary"):
        predict([str(new)], store)


def test_views_pin_their_augmentation_too(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: CountingEngine
) -> None:
    store = tmp_path / "store"
    embed(str(corpus), store, VIEWS)
    assert list(told(canary_of(store))["vectors"]) == [
        "canary.jpg", "canary.jpg as view 1", "canary.png", "canary.png as view 1",
    ]  # fmt: skip
    engine.images = engine.canaries = 0
    write_picture(corpus / "a" / "new.png", 100)
    plain = views._matrix
    with monkeypatch.context() as patch:
        patch.setattr(views, "_matrix", lambda *args: plain(*args) @ np.diag([1.01, 1, 1]))
        with pytest.raises(SpecMismatch, match=r"Got: canary.jpg as view 1 off .*, canary.png as view 1 off"):
            embed(str(corpus), store, VIEWS)
        canary_of(store).unlink()
        with pytest.raises(SpecMismatch, match=r"5 of 5 otherwise, the first file://"):
            embed(str(corpus), store, VIEWS)
    assert engine.images == 5
    assert embed(str(corpus), store, VIEWS).embedded == 1 and canary_of(store).exists()


# --- sets of today, and those without rows


def test_a_set_without_a_canary_gets_one_once_stored_images_agree(
    store: Path, corpus: Path, engine: CountingEngine
) -> None:
    before = told(canary_of(store))
    canary_of(store).unlink()
    embed(str(corpus), store)
    assert engine.images == 0 and not list(store.glob("features/*/canary.json"))  # there was nothing to embed
    write_picture(corpus / "a" / "new.png", 100)
    assert embed(str(corpus), store).embedded == 1
    assert engine.images == canary.STORED + 1 and told(canary_of(store)) == before


def test_a_set_without_a_canary_is_refused_where_stored_images_differ(
    store: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary_of(store).unlink()
    write_picture(corpus / "a" / "new.png", 100)
    before = digests(store)
    other_numbers(monkeypatch, 1.01)
    with pytest.raises(SpecMismatch, match=r"Got: 5 of 5 otherwise, the first file://.*/corpus/[abc]/.* off by 0\."):
        embed(str(corpus), store)
    assert digests(store) == before


def test_images_that_are_gone_or_changed_tell_nothing(
    store: Path, corpus: Path, engine: CountingEngine, caplog: pytest.LogCaptureFixture
) -> None:
    canary_of(store).unlink()
    every = sorted(corpus.rglob("*.png"))
    first = every[0].read_bytes()
    for number, path in enumerate(every):
        write_picture(path, 1000 + number) if number % 2 else path.rename(corpus.parent / path.name)
    assert embed(str(corpus), store).embedded == 15
    assert engine.images == 15 and not list(store.glob("features/*/canary.json"))
    assert "None of 30 stored images" in caplog.text
    every[0].write_bytes(first)  # one of the old ones is back; with those of the last run there are enough
    write_picture(corpus / "a" / "new.png", 100)
    embed(str(corpus), store)
    assert canary_of(store).exists() and engine.images == 15 + canary.STORED + 1


def test_a_set_without_rows_takes_a_new_canary(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: CountingEngine
) -> None:
    """A run was killed when the set was made, and the next one computes otherwise: there is nothing to be like."""
    store = tmp_path / "store"

    def killed(*_: object) -> None:
        raise StoreError("killed")

    for target, name in ((kept, "write"), (worker, "checked_engine"), (beam, "embed_shard")):
        with monkeypatch.context() as patch, pytest.raises(StoreError, match="killed"):
            patch.setattr(target, name, killed)
            embed(str(corpus), store)
        assert bool(list(store.glob("features/*/canary.json"))) == (target is not kept)
    before = told(canary_of(store))
    write_picture(corpus / "a" / "new.png", 100)
    with monkeypatch.context() as patch:
        other_numbers(patch)
        assert embed(str(corpus / "a"), store).embedded == 11 and told(canary_of(store)) != before
    with pytest.raises(SpecMismatch, match="canary"):
        embed(str(corpus), store)


def test_rows_of_a_killed_run_count(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: CountingEngine
) -> None:
    store = tmp_path / "store"
    with monkeypatch.context() as patch, pytest.raises(StoreError, match="killed"):
        patch.setattr(FeatureStore, "commit", mock.Mock(side_effect=StoreError("killed")))
        embed(str(corpus), store)
    write_picture(corpus / "a" / "new.png", 100)
    other_numbers(monkeypatch)
    with pytest.raises(SpecMismatch, match="canary"):
        embed(str(corpus), store)
    assert FeatureStore(store).catalog.count() == 30


def test_numbers_that_are_none_are_no_canary(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: CountingEngine, caplog: Any
) -> None:
    other_numbers(monkeypatch, float("nan"))
    assert embed(str(corpus), tmp_path / "store").failures == {"overflow": 30}
    assert "gets no canary" in caplog.text and not list(tmp_path.glob("store/features/*/canary.json"))


# --- damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": lambda path: path.write_bytes(path.read_bytes().replace(b"A", b"B", 1)),
    "empty": lambda path: path.write_bytes(b""),
    "unsealed": lambda path: path.write_text(json.dumps(told(path))),
    "of another set": lambda path: write_sealed(path, told(path) | {"set": "other-00000000"}),
    "without vectors": lambda path: write_sealed(path, told(path) | {"vectors": None}),
    "a link to itself": lambda path: (path.unlink(), path.symlink_to(path)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_canary_is_named_refused_and_made_anew(
    damage: str, store: Path, corpus: Path, engine: CountingEngine
) -> None:
    path, before = canary_of(store), told(canary_of(store))
    features = FeatureStore(store).features()
    DAMAGES[damage](path)
    assert [finding.path for finding in verify(store)] == [path.relative_to(store).as_posix()]
    write_picture(corpus / "a" / "new.png", 100)
    with pytest.raises(StoreCorrupt, match="penult doctor"):
        embed(str(corpus), store)
    result = doctor(store)
    assert [(one.put_aside, one.lost) for one in result.repairs] == [(["canary.json"], 0)]
    assert (result.embedded, engine.images, verify(store), doctor(store).repairs) == (0, 0, [], [])
    assert [path.name for path in store.glob("damaged/*/features/*/*")] == ["canary.json"]
    assert all(np.array_equal(*pair) for pair in zip(features, FeatureStore(store).features(), strict=True))
    embed(str(corpus), store)
    assert told(canary_of(store)) == before and engine.images == canary.STORED + 1


def test_a_damaged_ledger_beside_it(store: Path) -> None:
    for name in ("ledger.json", "canary.json"):
        canary_of(store).with_name(name).write_bytes(b"")
    (repair,) = doctor(store).repairs
    assert set(repair.put_aside) >= {"ledger.json", "canary.json"} and repair.lost == 0 and verify(store) == []


def test_a_canary_of_a_newer_penult(store: Path) -> None:
    write_sealed(canary_of(store), told(canary_of(store)) | {"format": kept.FORMAT + 1})
    with pytest.raises(FormatError, match="newer penult"):
        kept.read(canary_of(store).parent)


# --- a real network


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Digits, a store with features of a small network, a head on them, a cache of graphs of their own."""
    folder = tmp_path_factory.mktemp("canary")
    digits = load_digits(n_class=3)
    for number, (pixels, label) in enumerate(zip(digits.images[:45], digits.target[:45], strict=True)):
        path = folder / "corpus" / str(label) / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype(np.uint8)).resize((70, 50)).save(path)
    options = EmbedOptions("small")
    with seeded.small(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENULT_CACHE", str(folder / "cache"))
        worker.engine_for.cache_clear()
        embed(str(folder / "corpus"), folder / "store", options)
        head = train_head(folder / "store", TrainOptions("logreg", {"C": 1.0}))["run_id"]
        yield {"folder": folder, "options": options, "head": head}
        worker.engine_for.cache_clear()


def rescale(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Half a grey level in the normalisation: far less than anyone would see in a cosine."""
    plain = seeded.Small.normalized
    patch.setattr(seeded.Small, "normalized", lambda backbone, pixels: plain(backbone, pixels + 0.5))
    patch.setenv("PENULT_CACHE", str(folder / "rescaled"))  # or the graph of before would be used


def resize(patch: pytest.MonkeyPatch, folder: Path) -> None:
    def hamming(image: Image.Image, size: tuple[int, int], _: object, box: object = None) -> Image.Image:
        return plain(image, size, Image.Resampling.HAMMING, box)

    plain = Image.Image.resize
    patch.setattr(Image.Image, "resize", hamming)


def retrain(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Other weights under the digest of those that the set was made with."""
    plain = seeded.Small.load

    def load(backbone: seeded.Small, network: Any, tap: Any) -> None:
        plain(backbone, network, tap)
        for variable in network.trainable_variables:
            variable.assign(variable * 1.01)

    patch.setattr(seeded.Small, "load", load)
    patch.setenv("PENULT_CACHE", str(folder / "retrained"))


def embed_one(world: dict[str, Any], store: Path, new: Path) -> object:
    return embed(str(new.parent), store, world["options"])


def predict_one(world: dict[str, Any], store: Path, new: Path) -> object:
    return predict([str(new)], store, world["head"])


def finetune_some(world: dict[str, Any], store: Path, new: Path) -> object:
    return finetune(store, world["head"], FinetuneOptions("conv_dw_2", epochs=1))


def export_it(world: dict[str, Any], store: Path, new: Path) -> object:
    return export(store, store.parent / "model", head_id=world["head"])


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return write_picture(tmp_path / "more" / "new.png", 5, side=90)


@pytest.mark.parametrize(
    ("change", "act"),
    [  # each act with other pixels, and with other numbers of the network
        *((resize, act) for act in (embed_one, predict_one, finetune_some, export_it)),
        (rescale, embed_one),
        (retrain, predict_one),
        (rescale, finetune_some),
        (retrain, export_it),
    ],
)
def test_whatever_gives_other_numbers_is_refused(
    change: Callable[..., None],
    act: Callable[..., object],
    world: dict[str, Any],
    new: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Path(shutil.copytree(world["folder"] / "store", tmp_path / "store"))
    before = digests(store)
    change(monkeypatch, world["folder"])
    worker.engine_for.cache_clear()
    with pytest.raises(SpecMismatch, match=r"Got: canary\.\w+ off by"):
        act(world, store, new)
    worker.engine_for.cache_clear()
    assert digests(store) == before and not (tmp_path / "model").exists()


def test_a_cached_graph_of_other_weights_is_refused(
    world: dict[str, Any], new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.backbones.graphs import _digest

    shutil.copytree(world["folder"] / "cache", tmp_path / "cache")
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    (graph,) = (tmp_path / "cache" / "graphs").iterdir()
    weights = np.frombuffer((graph / "graph.bin").read_bytes(), np.uint8).copy()
    floats = weights[: len(weights) // 4 * 4].view("<f4")
    floats[(np.abs(floats) > 1e-3) & (np.abs(floats) < 1e3)] *= 1.01
    (graph / "graph.bin").write_bytes(weights.tobytes())
    (graph / "sha256").write_text(_digest((graph / "graph.xml").read_bytes(), weights.tobytes()))
    with pytest.raises(SpecMismatch, match="PENULT_CACHE"):
        predict_one(world, world["folder"] / "store", new)


@pytest.mark.parametrize("engine", ["openvino", "tensorflow"])
def test_both_engines_pass(engine: str, world: dict[str, Any], new: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(world["folder"] / "store", tmp_path / "store"))
    assert predict([str(new)], store, world["head"], PredictOptions(engine=EngineOptions(engine)))[0].label
    worker.engine_for.cache_clear()
    assert embed(str(new.parent), store, replace(world["options"], engine=EngineOptions(engine))).embedded == 1
    worker.engine_for.cache_clear()


def test_a_set_of_today_on_a_real_network(world: dict[str, Any], new: Path, tmp_path: Path) -> None:
    """Rows are rounded to float16, and the other engine computes them again."""
    store = Path(shutil.copytree(world["folder"] / "store", tmp_path / "store"))
    before = kept.read(canary_of(store).parent)
    canary_of(store).unlink()
    worker.engine_for.cache_clear()
    embed(str(new.parent), store, replace(world["options"], engine=EngineOptions("tensorflow")))
    worker.engine_for.cache_clear()
    after = kept.read(canary_of(store).parent)
    assert before is not None and after is not None
    for name, vector in before.vectors.items():
        assert kept.deviation(vector, after.vectors[name]) < 1e-5


def test_images_that_are_still_what_they_were(tmp_path: Path) -> None:
    """The first so many of them, each content once, decoded as the set is."""
    files = [write_picture(tmp_path / f"{number}.png", number, side=20) for number in range(5)]
    copy = write_picture(tmp_path / "copy.png", 0, side=20)
    rows = [(path.as_uri(), hashlib.sha256(path.read_bytes()).digest()) for path in (files[0], copy, *files[1:])]
    files[1].unlink()
    write_picture(files[2], 99)
    text = tmp_path / "text.png"
    text.write_text("no image")
    rows.insert(1, (text.as_uri(), hashlib.sha256(b"no image").digest()))
    seen = Preprocessing(8, "lite", crop="center")
    for count, expected in ((0, []), (1, [0]), (2, [0, 3]), (3, [0, 3, 4]), (9, [0, 3, 4])):
        found = canary.still_there(rows, seen, count)
        assert [uri for uri, _ in found.values()] == [files[number].as_uri() for number in expected]
        for number, (key, (_, pixels)) in zip(expected, found.items(), strict=True):
            assert key == hashlib.sha256(files[number].read_bytes()).digest()
            assert np.array_equal(pixels, decoded(files[number].read_bytes(), 8, "center").pixels)


def test_when_a_set_was_embedded_last(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "store")
    for number, (kind, name, version) in enumerate(
        [("embed", "one", "1"), ("embed", "one", "2"), ("embed", "two", "3"), ("train", "one", "4")]
    ):
        versions = {"numpy": version, "another": "9"}
        record = RunRecord(f"2026010{number + 1}T000000-{kind}-abcdef", kind, "", {}, {"feature_set": name}, versions)
        record.write(store.run_folder(record.run_id))
    for name, version in (("one", {"numpy": "2"}), ("two", {"numpy": "3"}), ("three", {})):
        found = canary._when_embedded(store, name)
        assert (found.versions, found.processor, found.vectors) == (version, "", {})
