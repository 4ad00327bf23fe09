"""Fine-tuning a small real network on real images: what is trained, what is kept, what a kill costs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from decoding import decoded
from PIL import Image
from pyarrow import parquet
from sklearn.datasets import load_digits

import seeded
from builders import SPEC
from conftest import write_picture
from featurestore.dataset import Dataset
from featurestore.errors import (
    EngineError,
    HeadError,
    Interrupted,
    SourceError,
    StoreNotFound,
    UsageError,
)
from featurestore.runs import RunRecord
from featurestore.schema import keys_of, storable
from featurestore.store import FeatureStore
from heads import artifact
from pipelines.backbones import finetuned, networks, table
from pipelines.backbones.engine_options import EngineOptions
from pipelines.commands import app
from pipelines.embedding import worker
from pipelines.embedding.embed import EmbedResult, embed
from pipelines.finetuning import finetune
from pipelines.images import decoder
from pipelines.images.augmentation import Augmentation
from pipelines.options import EmbedOptions, FinetuneOptions, FitData, TrainOptions
from pipelines.predict import predict
from pipelines.stored_heads import newest_head
from pipelines.training import train_head

LAYER = "conv_dw_2"
GENTLE = FinetuneOptions(LAYER, learning_rate=1e-5, epochs=2, batch_size=16)
VIEWS = Augmentation(rotation=20, shift=0.1, flip="horizontal", seed=3)
SCRIPT = Path(__file__).parent / "killed_finetune.py"


DATASET = Dataset(
    "set",
    "ab" * 32,
    np.zeros((3, 2), np.float32),
    np.array(["cat", "dog", "cat"]),
    np.array([bytes([n]) * 32 for n in (1, 2, 3)], "S32"),
    np.array(["file:///a.png", "file:///b.png", "file:///c.png"]),
    np.array(["train", "val", "test"]),
)


def test_what_decides_a_run_is_pinned() -> None:
    """If this fails, no run that was killed is resumed, and none that has ended is found again."""
    options = FinetuneOptions("top_conv", augmentation=VIEWS)
    job = finetune._Job(None, "run", None, None, None, FitData(), DATASET, options, ())  # type: ignore[arg-type]
    digest = job.digest
    assert digest == "9252b2be9e77668f"
    others = [
        replace(job, class_weight="balanced").digest,
        replace(job, head_id="other").digest,
        *(
            replace(job, dataset=replace(DATASET, **change)).digest
            for change in (
                {"fingerprint": "cd" * 32},
                {"keys": DATASET.keys[::-1]},
                {"y": DATASET.y[::-1][[0, 0, 1]]},
                {"splits": DATASET.splits[::-1]},
            )
        ),
    ]
    assert len({digest, *others}) == 7
    same = replace(DATASET, X=DATASET.X + 1, uris=DATASET.uris[::-1])
    assert replace(job, dataset=same, notes=("a note",)).digest == digest


def test_files_that_are_gone_are_not_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty file is there: why it has no features is said by the run that embeds."""
    write_picture(tmp_path / "a.png", 1)
    (tmp_path / "b.png").touch()
    uris = np.array([(tmp_path / name).as_uri() for name in ("a.png", "b.png", "c.png")])
    pictures: Any = SimpleNamespace(dataset=replace(DATASET, uris=uris), lost={}, watch=mock.Mock())
    store = FeatureStore.create(tmp_path / "store")
    listed: list[str] = []

    def embed_manifest(manifest: str, *_: Any, **__: Any) -> EmbedResult:
        listed.extend(parquet.read_table(manifest).column("uri").to_pylist())
        return EmbedResult("run", "tuned", "")

    monkeypatch.setattr(finetune, "embed", embed_manifest)
    assert finetune._embed(store, "run", pictures, store.add_set(SPEC)) == "tuned"
    assert listed == uris[:2].tolist() and pictures.lost == {DATASET.ids[2]: "vanished"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Digits in three class folders, a store with a small network's features of them, and heads on those.

    The logistic regression is one that training can make better.
    """
    folder = tmp_path_factory.mktemp("finetune")
    digits = load_digits(n_class=3)
    for number, (pixels, label) in enumerate(zip(digits.images[:66], digits.target[:66], strict=True)):
        path = folder / "corpus" / str(label) / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.kron(pixels * (255 / 16), np.ones((8, 8))).astype(np.uint8)).save(path)
    with seeded.small(folder) as backbone:
        weights = backbone.published(top=False)
        embed(str(folder / "corpus"), folder / "store", EmbedOptions("small", str(weights)))
        heads = {
            name: train_head(folder / "store", TrainOptions(name, params))["run_id"]
            for name, params in (
                ("logreg", {"C": 1e-3}),
                ("svm", {}),
                ("knn", {}),
                ("dense", {"hidden": [16], "epochs": 5}),
            )
        }
        yield {"folder": folder, "corpus": folder / "corpus", "store": folder / "store", "weights": weights, **heads}


class Followed:
    """What a fine-tuning shows of its course."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.progress: list[tuple[int, int]] = []

    def arguments(self) -> dict[str, Any]:
        return {"say": self.said.append, "progress": lambda done, total: self.progress.append((done, total))}


@pytest.fixture(scope="module")
def followed() -> Followed:
    return Followed()


@pytest.fixture(scope="module")
def done(world: dict[str, Any], followed: Followed) -> dict[str, Any]:
    """One fine-tuning of the logistic regression."""
    told = finetune.finetune(world["store"], world["logreg"], GENTLE, **followed.arguments())
    assert newest_head(FeatureStore(world["store"])) == told["run_id"]
    return told


@pytest.fixture
def store(world: dict[str, Any], tmp_path: Path) -> Path:
    """A copy of the store, before anything was fine-tuned in it or not."""
    return Path(shutil.copytree(world["store"], tmp_path / "store"))


def arrays(tap: table.Tap) -> dict[str, np.ndarray]:
    """Every weight of a network by its name."""
    return {v.path: v.numpy() for v in networks.build(tap).variables}


def without_seconds(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


# --- the result


def test_only_what_is_unfrozen_is_trained(world: dict[str, Any], done: dict[str, Any]) -> None:
    store = FeatureStore(world["store"])
    tap = finetuned.find(store, done["backbone"])
    before, after = arrays(replace(tap, weights=str(world["weights"]))), arrays(tap)
    order = [layer for layer, _ in networks.layers("small")]
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    trained = {path for path in before if order.index(path.split("/")[-2]) >= order.index(LAYER)}
    statistics = {path for path in trained if "moving_" in path}
    assert statistics and changed == trained - statistics
    old, _ = artifact.load(store.run_folder(world["logreg"]))
    new, meta = artifact.load(store.run_folder(done["run_id"]))
    assert not np.array_equal(old.arrays["coef"], new.arrays["coef"])
    assert np.array_equal(old.arrays["mean"], new.arrays["mean"]) and meta["feature_set"] == done["feature_set"]


def test_scores_stand_side_by_side(world: dict[str, Any], done: dict[str, Any]) -> None:
    assert done.keys() >= {
        "run_id", "head_id", "backbone", "feature_set", "epochs", "best_epoch", "history", "before", "after",
        "p_value", "fit_seconds", "n", "left_out",
    }  # fmt: skip
    assert done["before"].keys() == done["after"].keys() == {"val", "test", "test_ci"}
    assert [row["epoch"] for row in done["history"]] == [1, 2] and done["best_epoch"] == 2
    assert done["history"][0].keys() == {"epoch", "loss", "accuracy", "val_loss", "val_accuracy", "seconds"}
    assert done["history"][1]["val_loss"] < done["history"][0]["val_loss"] < done["start"]["val_loss"]
    store = FeatureStore(world["store"])
    head, _ = artifact.load(store.run_folder(world["logreg"]))
    test = store.dataset(store.resolve("small-" + head_set(store, world["logreg"]))).part("test")
    assert done["before"]["test"] == np.mean(head.predict(test.X) == test.y)
    low, high = done["after"]["test_ci"]
    assert low < done["after"]["test"] < high or done["after"]["test"] in (0, 1)
    assert 0 < done["p_value"] <= 1 and done["left_out"] == {}
    assert done["n"]["train"] + done["n"]["val"] + done["n"]["test"] == 66
    assert Path(done["report"]).read_text().count("<svg") > 0
    assert store.labels.count() == 66


def test_its_course_is_told_while_it_goes_on(done: dict[str, Any], followed: Followed) -> None:
    before, first, second = followed.said
    start, history, seconds = done["start"], done["history"], done["seconds"]
    assert before == f"Before: validation {start['val_accuracy']:.1%}, loss {start['val_loss']:.4f}."
    for number, (line, row) in enumerate(zip((first, second), history, strict=True), start=1):
        assert line == (
            f"Epoch {number} of 2: loss {row['loss']:.4f}, accuracy {row['accuracy']:.1%}; "
            f"validation {row['val_accuracy']:.1%}, loss {row['val_loss']:.4f} ({row['seconds']:.1f} s)."
        )
    counted = [count for count, _ in followed.progress]
    work = 2 * (done["n"]["train"] + done["n"]["val"]) + done["n"]["val"] + 66
    assert counted == sorted(counted) and counted[-1] == work and {total for _, total in followed.progress} == {work}
    assert seconds.keys() == {"train", "validate", "checkpoint", "embed", "score"} and min(seconds.values()) > 0
    assert done["fit_seconds"] == pytest.approx(sum(row["seconds"] for row in history), abs=2e-3)
    assert done["images_per_second"] == pytest.approx(2 * done["n"]["train"] / seconds["train"], rel=0.05)


def head_set(store: FeatureStore, head: str) -> str:
    return str(artifact.load(store.run_folder(head))[1]["feature_set"]).removeprefix("small-")


def test_its_features_are_the_networks_own(world: dict[str, Any], done: dict[str, Any]) -> None:
    store = FeatureStore(world["store"])
    tap = finetuned.find(store, done["backbone"])
    again = embed(str(world["corpus"]), store.path, EmbedOptions(done["backbone"]))
    assert (again.feature_set, again.embedded, again.unchanged) == (done["feature_set"], 0, 66)
    rows = store.catalog.read(["uri", "sha256"]).sort_by("sha256")
    paths = [uri.removeprefix("file://") for uri in rows.column("uri").to_pylist()]
    pixels = np.stack([decoder.decode(Path(path).read_bytes(), tap.preprocessing).pixels for path in paths])
    expected = networks.build(tap).predict(pixels, verbose=0)
    stored, found = store.vectors(done["feature_set"], keys_of(rows.column("sha256")))
    assert found.all() and seeded.cosine(stored, expected).min() > 0.99999
    head, _ = artifact.load(store.run_folder(done["run_id"]))
    val = store.dataset(done["feature_set"]).part("val")
    assert np.mean(head.predict(val.X) == val.y) == pytest.approx(done["history"][1]["val_accuracy"])


def test_predict_finds_the_weights(world: dict[str, Any], done: dict[str, Any], tmp_path: Path) -> None:
    """A image the store lacks, with base weights that are gone."""
    new = tmp_path / "new.png"
    Image.open(next((world["corpus"] / "1").glob("*.png"))).rotate(5).save(new)
    hidden = world["weights"].rename(tmp_path / "moved.h5")
    try:
        (told,) = predict([str(new)], world["store"], done["head_id"])
    finally:
        hidden.rename(world["weights"])
    store = FeatureStore(world["store"])
    tap = finetuned.find(store, done["backbone"])
    X = networks.build(tap).predict(decoded(new.read_bytes(), 64).pixels[None], verbose=0)
    head, _ = artifact.load(store.run_folder(done["run_id"]))
    assert told.label == head.predict(X)[0]
    assert told.probability == pytest.approx(head.probabilities(X).max(), abs=1e-3)


def test_again_from_the_fine_tuned_head_on_the_command_line(
    world: dict[str, Any], done: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["finetune", "--store", str(world["store"]), "--head", done["head_id"], "--unfreeze-from", "conv_pw_2"]
    command += ["--optimizer", "rmsprop", "--learning-rate", "1e-6", "--epochs", "1", "--flip", "horizontal", "--json"]
    app(command, standalone_mode=False)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["before"]["test"] == done["after"]["test"] and told["epochs"] == 1
    app(command, standalone_mode=False)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == told  # done before
    app(["runs", "--store", str(world["store"])], standalone_mode=False)
    assert "→" in capsys.readouterr().err


def test_the_class_weight_is_that_of_the_chosen_row() -> None:
    board = [{"class_weight": None}, {"class_weight": "balanced"}]
    for chosen, expected in (({}, None), ({"chosen": 0}, None), ({"chosen": 1}, "balanced")):
        record = RunRecord("id", "compare", "2026-01-02", {}, {"leaderboard": board, **chosen})
        assert finetune._class_weight(record) == expected


def test_a_comparisons_winner_with_its_class_weight(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is made as it was asked for, and the weights of rare classes are in its loss."""
    app(["compare", "--heads", "ridge", "--class-weight", "balanced", "--store", str(store)], standalone_mode=False)
    made, weights = [], {}
    init, step = finetune.Trainer.__init__, finetune.Trainer.step

    def noted_init(self: finetune.Trainer, *asked: Any) -> None:
        made.append(asked[2:])
        init(self, *asked)

    def noted_step(self: finetune.Trainer, *batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weights.update(zip(self.classes[batch[1]].tolist(), batch[2].tolist(), strict=True))
        return step(self, *batch)

    monkeypatch.setattr(finetune.Trainer, "__init__", noted_init)
    monkeypatch.setattr(finetune.Trainer, "step", noted_step)
    options = FinetuneOptions("conv_pw_2", learning_rate=1e-5, momentum=0.25, epochs=1)
    told = finetune.finetune(store, None, options)
    asked = RunRecord.read(store / "runs" / told["run_id"]).parameters
    assert "compare" in asked["head_id"] and asked["class_weight"] == "balanced"
    assert made == [("conv_pw_2", "sgd", {"learning_rate": 1e-5, "momentum": 0.25})]
    opened = FeatureStore(store)
    feature_set = artifact.load(opened.run_folder(asked["head_id"]))[1]["feature_set"]
    labels, counts = np.unique(opened.dataset(feature_set).part("train").y, return_counts=True)
    assert len(set(counts)) > 1  # else the weights would say nothing
    assert weights == pytest.approx(dict(zip(labels.tolist(), counts.sum() / 3 / counts, strict=True)), rel=1e-6)


def test_a_worse_network_is_not_kept(world: dict[str, Any], store: Path) -> None:
    wild = FinetuneOptions(LAYER, learning_rate=0.03, momentum=0.0, epochs=1, batch_size=8)
    told = finetune.finetune(store, world["svm"], wild)
    assert told["history"][0]["val_loss"] > told["start"]["val_loss"] and told["best_epoch"] == 0
    assert told["after"] == told["before"] and told["notes"]
    with pytest.raises(HeadError, match="smaller --learning-rate"):
        finetune.finetune(store, world["logreg"], replace(wild, learning_rate=1e38))


def test_computes_in_the_precision_of_the_features(
    world: dict[str, Any], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = EmbedOptions("small", str(world["weights"]), engine=EngineOptions(precision="bf16"))
    try:
        embed(str(world["corpus"]), store, options)
    except EngineError:
        pytest.skip("this CPU only emulates bf16")
    losses, evaluate = [], finetune.Trainer.evaluate

    def twice(self: finetune.Trainer, *batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        result = evaluate(self, *batch)
        with self.running("f32"):
            losses.append((result[0], evaluate(self, *batch)[0]))
        return result

    monkeypatch.setattr(finetune.Trainer, "evaluate", twice)
    told = finetune.finetune(store, train_head(store, TrainOptions("ncm"))["run_id"], replace(GENTLE, epochs=1))
    assert FeatureStore(store).spec(told["feature_set"]).precision == "bf16"
    bf16, f32 = losses[0]
    assert not np.array_equal(bf16, f32) and np.allclose(bf16, f32, rtol=0.2, atol=0.2)


# --- interruptions


def test_resumes_where_it_was_killed(world: dict[str, Any], store: Path, tmp_path: Path) -> None:
    """SIGKILL after an epoch, SIGTERM after another: the same history, the same weights."""
    options = replace(GENTLE, learning_rate=1e-4, schedule="cosine", epochs=3, augmentation=VIEWS)
    whole = Path(shutil.copytree(store, tmp_path / "whole"))
    expected = finetune.finetune(whole, world["dense"], options)

    killed = subprocess.run(
        [sys.executable, SCRIPT, store, world["dense"], world["folder"]], capture_output=True, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (folder,) = (store / "finetune").iterdir()
    with np.load(folder / "checkpoint.npz") as archive:
        assert len(json.loads(str(archive["told"]))["history"]) == 1
    said: list[str] = []

    def stop_after_an_epoch(line: str) -> None:
        said.append(line)
        if line.startswith("Epoch 2"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        finetune.finetune(store, world["dense"], options, say=stop_after_an_epoch)
    assert said[0] == "Resuming after epoch 1 of 3."
    told = finetune.finetune(store, world["dense"], options)
    assert without_seconds(told["history"]) == without_seconds(expected["history"])
    assert told["run_id"] == json.loads((store / "backbones" / f"{told['run_id']}.json").read_text())["id"]
    assert {p.name for p in (store / "backbones").glob("*.h5")} & {p.name for p in (whole / "backbones").glob("*.h5")}
    ours, theirs = (
        artifact.load(FeatureStore(s).run_folder(t["run_id"]))[0] for s, t in ((store, told), (whole, expected))
    )
    assert all(np.array_equal(ours.arrays[name], theirs.arrays[name]) for name in theirs.arrays)
    assert not list((store / "finetune").iterdir())


def test_killed_after_training_nothing_is_trained_again(
    world: dict[str, Any], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is done again after that, though no head was named and the newest is now the run's own."""
    once = FinetuneOptions("conv_pw_2", learning_rate=1e-5, epochs=1)

    def fail(*_: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "_pair", fail)
        with pytest.raises(RuntimeError):
            finetune.finetune(store, None, once)
    monkeypatch.setattr(finetune.Trainer, "step", fail)
    followed = Followed()
    told = finetune.finetune(store, None, once, **followed.arguments())
    assert len(told["history"]) == 1 and told["images_per_second"] == 0
    work = told["n"]["train"] + 2 * told["n"]["val"] + 66
    assert followed.said == [f"Head: {world['dense']}, the newest.", "Resuming after epoch 1 of 1."]
    assert followed.progress[0] == (work - 66, work) and followed.progress[-1] == (work, work)
    assert len([r for r in FeatureStore(store).runs() if r.kind == "finetune" and r.run_id == told["run_id"]]) == 1
    asked = RunRecord.read(store / "runs" / told["run_id"]).parameters
    assert asked["head_id"] == world["dense"]  # the newest before
    (store / "finetune" / asked["digest"]).mkdir()  # as a run leaves it that dies after its record
    assert finetune.finetune(store, None, once) == told
    assert not list((store / "finetune").iterdir())


# --- what can be wrong


def test_features_that_cannot_be_stored_are_told(
    world: dict[str, Any], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = 1  # so many images of a batch, one is beyond the set's dtype

    def overflowing(vectors: np.ndarray, dtype: str) -> np.ndarray:
        beyond = np.arange(len(vectors)) % every == 0
        return storable(np.where(beyond[:, None], np.inf, vectors), dtype)

    whole = Path(shutil.copytree(store, store.parent / "whole"))
    monkeypatch.setattr(worker, "storable", overflowing)
    once = replace(GENTLE, epochs=1)
    with pytest.raises(HeadError, match=r"features float16 can hold\. Got: none for 66 images"):
        finetune.finetune(store, world["logreg"], once)
    every = 20
    told = finetune.finetune(whole, world["logreg"], once)
    assert told["left_out"].keys() == {"overflow"} and 0 < told["left_out"]["overflow"] < 33
    assert sum(told["n"][split] for split in ("train", "val", "test")) == 66 - told["left_out"]["overflow"]


def test_pictures_that_are_gone_are_left_out(world: dict[str, Any], store: Path, tmp_path: Path) -> None:
    opened = FeatureStore(store)
    train = opened.dataset(artifact.load(opened.run_folder(world["logreg"]))[1]["feature_set"]).part("train")
    gone, changed = (Path(uri.removeprefix("file://")) for uri in train.uris[:2])
    kept = {path: (path.read_bytes(), path.stat()) for path in (gone, changed)}
    try:
        gone.unlink()
        changed.write_bytes(kept[changed][0][:-30])
        told = finetune.finetune(store, world["logreg"], replace(GENTLE, epochs=1))
        assert told["left_out"] == {"vanished": 1, "changed": 1}
        assert told["n"]["train"] == len(train) - 2
        (world["corpus"]).rename(tmp_path / "away")
        with pytest.raises(SourceError, match=r"No image .* vanished"):
            finetune.finetune(store, world["logreg"], replace(GENTLE, epochs=2, batch_size=8))
    finally:
        if (tmp_path / "away").exists():
            (tmp_path / "away").rename(world["corpus"])
        for path, (data, stat) in kept.items():
            path.write_bytes(data)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize(
    ("head", "options", "error", "message"),
    [
        ("logreg", {"unfreeze_from": "conv_dw_21"}, UsageError, "no layer 'conv_dw_21': .*conv_dw_1"),
        ("logreg", {"unfreeze_from": "conv_pw_2_relu"}, UsageError, "nothing to train from conv_pw_2_relu"),
        ("knn", {}, HeadError, "knn head cannot be trained further: train a logreg or dense head"),
        ("logreg", {"optimizer": "sdg"}, UsageError, "Expected: --optimizer adam"),
        ("logreg", {"optimizer": "adam", "momentum": 0.5}, UsageError, "--momentum is of sgd"),
        ("logreg", {"momentum": 1.0}, UsageError, "--momentum from 0 to below 1"),
        ("logreg", {"learning_rate": 0.0}, UsageError, "--learning-rate above 0"),
        ("logreg", {"schedule": "steps"}, UsageError, "--schedule constant or cosine"),
        ("logreg", {"batch_size": 0}, UsageError, "--batch-size at .* from 1 to"),
        ("logreg", {"batch_size": 100_000}, UsageError, "--batch-size at .* Got: 100000"),
        ("logreg", {"epochs": 10**9}, UsageError, "--epochs"),
        ("logreg", {"augmentation": Augmentation(seed=-1)}, UsageError, "--seed"),
        ("logreg", {"augmentation": Augmentation(flip="left")}, UsageError, "--flip"),
    ],
)
def test_wrong_words_are_refused(
    world: dict[str, Any], head: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        finetune.finetune(world["store"], world[head], replace(GENTLE, **options))


def test_wrong_fine_tuned_backbones_are_refused(world: dict[str, Any], done: dict[str, Any]) -> None:
    with pytest.raises(StoreNotFound, match=done["backbone"]):
        embed(str(world["corpus"]), world["store"], EmbedOptions("ft:other"))
    with pytest.raises(UsageError, match="has its own input size"):
        embed(str(world["corpus"]), world["store"], EmbedOptions(done["backbone"], input_size=32))


def test_labels_that_the_head_does_not_know_are_refused(world: dict[str, Any], store: Path, tmp_path: Path) -> None:
    from pipelines.embedding.labels import import_labels

    rows = [f"{path},{path.parent.name}-{int(path.stem) % 2}" for path in world["corpus"].rglob("*.png")]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    import_labels(str(tmp_path / "labels.csv"), store)
    with pytest.raises(HeadError, match=r"knows 3 classes, the labels now have 6 others \(0-0, "):
        finetune.finetune(store, world["logreg"], GENTLE)


def test_cosine_schedule_falls_from_the_learning_rate_towards_zero():
    options = replace(GENTLE, learning_rate=0.1, schedule="cosine", epochs=4)
    assert np.allclose([options.rate(epoch) for epoch in range(1, 6)], [0.1, 0.0853553, 0.05, 0.0146447, 0], atol=1e-6)
    assert replace(options, schedule="constant").rate(4) == 0.1
