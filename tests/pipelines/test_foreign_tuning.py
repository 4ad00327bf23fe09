"""Networks that users added as files of Keras: fine-tuned, and used as every fine-tuned backbone is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from command import json_of, penult
from conftest import ROOT
from featurestore.store import FeatureStore
from heads.backend import import_keras
from pipelines.backbones import finetuned, foreign

ZOO = ROOT / "tests" / "golden" / "models"
SIDE, CROP_RATIO = 64, 0.875
MEAN, STD = np.float32((0.485, 0.456, 0.406)), np.float32((0.229, 0.224, 0.225))


def draw_pictures(folder: Path, count: int = 60) -> Path:
    """Smooth noise in two classes, of which one has stripes."""
    for number in range(count):
        draw = np.random.default_rng(number)
        coarse = Image.fromarray(draw.integers(0, 256, (6, 8, 3), np.uint8)).resize((90, 70), Image.Resampling.BICUBIC)
        pixels = np.asarray(coarse, int) + (number % 2) * 25 * (np.arange(90) // 3 % 2)[None, :, None]
        path = folder / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
    return folder


def as_the_network_takes_it(picture: Path) -> np.ndarray:
    """The spec's resize, crop and normalisation, by Pillow and numpy."""
    image, side = Image.open(picture), int(SIDE / CROP_RATIO)
    scale = side / min(image.size)
    image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = round((image.width - SIDE) / 2), round((image.height - SIDE) / 2)
    square = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float32)
    return (square / 255 - MEAN) / STD


def trained(folder: Path, file: str, spec: Path | None = None, corpus: Path | None = None) -> Path:
    """A store with a network, features of drawn pictures, and a head on them."""
    store = folder / "store"
    corpus = corpus or draw_pictures(folder / "corpus")
    toml = folder / "spec.toml"
    text = (spec or ZOO / "net.toml").read_text()
    output = 'output = "features"\n' if Path(file).suffix in (".keras", ".h5") else ""
    toml.write_text(output + text.replace('"ref.', f'"{ZOO}/ref.'))
    for call in (
        ("backbones", "add", "mine", ZOO / file, "--spec", toml),
        ("embed", corpus, "--backbone", "mine", "--dtype", "float32"),
        ("train", "--head", "logreg"),
    ):
        done = penult(*call, "--store", store)
        assert done.returncode == 0, done.stderr
    return store


@pytest.fixture(scope="module", params=["net.keras", "net.h5"])
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A store with a fine-tuned network, and what the fine-tuning said."""
    store = trained(tmp_path_factory.mktemp("tuned"), request.param)
    call = ("finetune", "--unfreeze-from", "features", "--epochs", "3", "--learning-rate", "0.02")
    return store, json_of(penult(*call, "--store", store, "--json"))


def kept_network(store: Path, tap: Any) -> Any:
    """The kept model as Keras loads it, up to the tapped layer, with the weights of a tap."""
    keras = import_keras()
    with tap.network.model_file() as file:
        network = keras.models.load_model(file, compile=False)
    part = keras.Model(network.inputs[0], network.get_layer("features").output)
    if tap.weights != "imagenet":
        part.load_weights(tap.weights)
    return part


def test_it_learns_and_its_features_are_what_keras_gives(tuned: tuple[Path, dict[str, Any]]) -> None:
    store, told = tuned
    losses = [row["loss"] for row in told["history"]]
    assert losses[-1] < losses[0] and told["best_epoch"] > 0, told
    opened = FeatureStore(store)
    frozen, fresh = foreign.find(store, "mine"), finetuned.find(opened, told["backbone"])
    assert fresh.preprocessing == frozen.preprocessing == opened.spec(told["feature_set"]).preprocessing
    assert fresh.weights_sha256 != frozen.weights_sha256

    pictures = sorted((store.parent / "corpus").rglob("*.png"))[:8]
    given = np.stack([as_the_network_takes_it(path) for path in pictures])
    import hashlib

    keys = np.array([hashlib.sha256(path.read_bytes()).digest() for path in pictures])
    order = np.argsort(keys)
    made = {}
    for tap, name in ((frozen, opened.sets()[0]), (fresh, told["feature_set"])):
        feature_set = next(s for s in opened.sets() if opened.spec(s).weights_sha256 == tap.weights_sha256)
        vectors, found = opened.vectors(feature_set, keys[order])
        assert found.all(), name
        wanted = np.asarray(kept_network(store, tap)(given, training=False)).mean(axis=(1, 2))[order]
        np.testing.assert_allclose(vectors, wanted, atol=2e-5)
        made[feature_set] = vectors
    first, second = made.values()
    assert np.abs(first - second).max() > 1e-2
