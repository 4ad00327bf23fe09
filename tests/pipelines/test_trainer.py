"""Fine-tuning's numbers: a step against a gradient in numpy, what the network is shown, which epoch is kept."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoding import decoded
from PIL import Image

from featurestore.dataset import Dataset
from heads.backend import import_keras
from heads.base import Head
from heads.families.dense import DenseHead
from heads.families.linear import LinearHead
from pipelines.backbones.table import Tap
from pipelines.finetuning import checkpoint, epochs, finetune, trainer
from pipelines.finetuning.pictures import Pictures, Watch
from pipelines.finetuning.trainer import Trainer
from pipelines.images.augmentation import Augmentation
from pipelines.images.views import random_view
from pipelines.options import FinetuneOptions

SIDE, WIDTH, RATE, MOMENTUM = 4, 5, 0.05, 0.75
TAP = Tap("efficientnet-lite0", "none", "features", "none", SIDE, "center")
CLASSES = np.array(["a", "b", "c"])
DRAW = np.random.default_rng(3)
PIXELS = DRAW.integers(0, 256, (9, SIDE, SIDE, 3), np.uint8)
LABELS = DRAW.integers(0, 3, 9).astype(np.int32)
WEIGHTS = DRAW.uniform(0.3, 3, 9).astype(np.float32)  # as of unbalanced classes
KERNEL = DRAW.normal(0, 0.3, (SIDE * SIDE * 3, WIDTH)).astype(np.float32)
BIAS = DRAW.normal(0, 0.3, WIDTH).astype(np.float32)


def arrays(*shapes: tuple[int, int]) -> list[tuple[np.ndarray, np.ndarray]]:
    draw = np.random.default_rng(8)
    return [(draw.normal(size=shape).astype("f4"), draw.normal(size=shape[1]).astype("f4")) for shape in shapes]


def standard() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(9)
    return {
        "mean": draw.uniform(0, 1, WIDTH).astype("f4"),
        "scale": draw.uniform(0.5, 2, WIDTH).astype("f4"),
        "temperature": np.float32(1.7),
    }


def linear() -> Head:
    ((coef, intercept),) = arrays((WIDTH, 3))
    return LinearHead("logreg", {}, CLASSES, {**standard(), "coef": coef, "intercept": intercept})


def dense(dropout: float) -> Head:
    (kernel0, bias0), (kernel1, bias1) = arrays((WIDTH, 6), (6, 3))
    own = {"kernel0": kernel0, "bias0": bias0, "kernel1": kernel1, "bias1": bias1}
    return DenseHead("dense", {"hidden": [6], "dropout": dropout}, CLASSES, {**standard(), **own})


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trainer]:
    """Trainers of a backbone of one layer: ``relu(pixels / 255 @ KERNEL + BIAS)``; its dropout is never on."""
    keras = import_keras()

    def unfrozen(_tap: Tap, _layer: str) -> tuple[Any, Any]:
        pixels = keras.Input((SIDE, SIDE, 3), dtype="uint8")
        flat = keras.layers.Flatten()(keras.ops.cast(pixels, "float32") / 255)
        layer = keras.layers.Dense(WIDTH, activation="relu")
        model = keras.Model(pixels, layer(keras.layers.Dropout(0.9)(flat)))
        layer.set_weights([KERNEL, BIAS])
        return model, model

    monkeypatch.setattr(trainer.networks, "unfrozen", unfrozen)
    settings = FinetuneOptions("features", learning_rate=RATE, momentum=MOMENTUM).settings()
    return lambda head: Trainer(TAP, head, "features", "sgd", settings)


def layers_of(head: Head) -> list[np.ndarray]:
    names = ["coef", "intercept"] if isinstance(head, LinearHead) else ["kernel0", "bias0", "kernel1", "bias1"]
    return [KERNEL, BIAS, *(head.arrays[name] for name in names)]


def gradient(head: Head, values: list[np.ndarray], weights: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Cross-entropies (n,) and the gradient of their weighted mean, in float64, layer by layer backwards."""
    values = [value.astype(float) for value in values]
    mean, scale, temperature = (head.arrays[name].astype(float) for name in ("mean", "scale", "temperature"))
    inputs, outputs, X = [], [], PIXELS.reshape(len(PIXELS), -1) / 255
    for i in range(0, len(values), 2):
        inputs.append(X)
        outputs.append(X @ values[i] + values[i + 1])
        X = outputs[-1] if i + 2 == len(values) else np.maximum(outputs[-1], 0)
        X = (X - mean) / scale if i == 0 else X
    exponents = np.exp(X / temperature - (X / temperature).max(axis=1, keepdims=True))
    shares = exponents / exponents.sum(axis=1, keepdims=True)
    right = np.eye(3)[LABELS]
    back = weights[:, None] * (shares - right) / temperature / len(PIXELS)
    found: list[np.ndarray] = []
    for i in range(len(values) - 2, -1, -2):
        found = [inputs[i // 2].T @ back, back.sum(axis=0), *found]
        if i:
            back = back @ values[i].T
            back = (back / scale if i == 2 else back) * (outputs[i // 2 - 1] > 0)
    return -np.log(shares[np.arange(len(LABELS)), LABELS]), found


@pytest.mark.parametrize("head", [linear(), dense(0.0)], ids=["linear", "dense"])
def test_steps_are_those_of_the_weighted_loss_at_the_heads_temperature(
    made: Callable[..., Trainer], head: Head
) -> None:
    """Two of them, by stochastic gradient descent with momentum; the second with a smaller learning rate."""
    ours, expected = made(head), layers_of(head)
    velocity = [np.zeros_like(value) for value in expected]
    for epoch, rate in ((1, RATE), (2, RATE / 4)):
        ours.begin(0, epoch, rate)
        losses, slopes = gradient(head, expected, WEIGHTS)
        scores = ours.evaluate(PIXELS, LABELS)
        told, predicted = ours.step(PIXELS, LABELS, WEIGHTS)
        np.testing.assert_allclose(told, losses, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scores[0], losses, rtol=1e-4, atol=1e-5)
        assert (predicted == scores[1]).all()
        features = np.maximum(PIXELS.reshape(len(PIXELS), -1) / 255 @ ours.weights()[0] + ours.weights()[1], 0)
        np.testing.assert_allclose(ours.features(PIXELS), features, rtol=1e-4, atol=1e-5)
        velocity = [MOMENTUM * speed - rate * slope for speed, slope in zip(velocity, slopes, strict=True)]
        expected = [value + speed for value, speed in zip(expected, velocity, strict=True)]
        for found, right in zip(ours.weights(), expected, strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)
    kept = ours.head()
    for found, right in zip(layers_of(kept)[2:], expected[2:], strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)
    assert kept.arrays["temperature"] == head.arrays["temperature"]


def test_a_class_that_the_head_does_not_know_has_no_probability(made: Callable[..., Trainer]) -> None:
    losses, _ = made(linear()).evaluate(PIXELS[:2], np.array([-1, LABELS[1]], np.int32))
    assert losses[0] == pytest.approx(-np.log(1e-7)) and losses[1] < 16


def test_dropout_is_of_training_alone_and_of_seed_and_epoch(made: Callable[..., Trainer]) -> None:
    def first_losses(seed: int, epoch: int) -> np.ndarray:
        ours = made(dense(0.5))
        ours.begin(seed, epoch, RATE)
        plain = ours.evaluate(PIXELS, LABELS)[0]
        assert np.array_equal(plain, ours.evaluate(PIXELS, LABELS)[0])
        np.testing.assert_allclose(plain, gradient(dense(0.5), layers_of(dense(0.5)), WEIGHTS)[0], rtol=1e-4, atol=1e-5)
        losses = ours.step(PIXELS, LABELS, WEIGHTS)[0]
        assert not np.allclose(losses, plain, rtol=0.01)
        return losses

    one = first_losses(1, 1)
    assert np.array_equal(one, first_losses(1, 1))
    assert not np.allclose(one, first_losses(1, 2)) and not np.allclose(one, first_losses(2, 1))


# --- what the network is shown, and which epoch is kept: real images, and a network that takes notes

TRAIN, VAL, TEST = range(12), range(12, 17), range(17, 20)
BENT = Augmentation(rotation=30, shift=0.1, shear=10, zoom=0.2, flip="horizontal", seed=4)


class Notes:
    """A network that notes what it is shown, and scores validation as it is told to."""

    classes = CLASSES

    def __init__(self, scores: list[tuple[float, float]]) -> None:
        """``scores``: accuracy and loss on validation, before the first epoch and after each."""
        self.trained: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.validated: list[tuple[np.ndarray, np.ndarray]] = []
        self.begun: list[tuple[int, int, float]] = []
        self._scores = scores

    def begin(self, *told: Any) -> None:
        self.begun.append(told)

    def step(self, pixels: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.trained.append((pixels, labels, weights))
        return np.ones(len(pixels), np.float32), labels

    def evaluate(self, pixels: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.validated.append((pixels, labels))
        assert len(pixels) == len(VAL)
        share, loss = self._scores[len(self.begun)]
        right = np.arange(len(labels)) < round(share * len(labels))
        return np.full(len(labels), loss, np.float32), np.where(right, labels, -2)

    def weights(self) -> list[np.ndarray]:
        return [np.array([len(self.begun)])]

    def momenta(self) -> list[np.ndarray]:
        return []


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twenty rectangles of three classes of different sizes."""
    folder, draw, files = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0), []
    for number in range(20):
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (40, 60, 3), np.uint8)).resize((90, 40)).save(file, "PNG")
        (folder / f"{number}.png").write_bytes(file.getvalue())
        files.append((hashlib.sha256(file.getvalue()).digest(), (folder / f"{number}.png").as_uri()))
    keys, uris = zip(*files, strict=True)
    y = np.array(["a"] * 6 + ["b"] * 4 + ["c"] * 2 + ["a", "b", "c", "a", "zebra"] + ["c"] * 3)
    splits = np.array(["train"] * 12 + ["val"] * 5 + ["test"] * 3)
    return Dataset("set", "print", np.zeros((20, 1), np.float32), y, np.array(keys, "S32"), np.array(uris), splits)


def trained(
    dataset: Dataset, folder: Path, network: Notes, options: FinetuneOptions, class_weight: str | None = None
) -> checkpoint.Course:
    folder.mkdir(exist_ok=True)
    tap = replace(TAP, input_size=32)
    pictures = Pictures(dataset, tap, options.batch_size, Watch(0, None))
    weights = finetune._weights(dataset, class_weight)
    return epochs.train(network, pictures, weights, options, folder, lambda _: None)  # type: ignore[arg-type]


def squares(dataset: Dataset, rows: range) -> list[np.ndarray]:
    paths = [Path(uri.removeprefix("file://")) for uri in dataset.uris[list(rows)]]
    return [decoded(path.read_bytes(), 32, "center").pixels for path in paths]


@pytest.mark.parametrize("augmentation", [BENT, Augmentation(seed=4)], ids=["views", "plain"])
def test_validation_sees_the_pictures_and_training_their_views(
    dataset: Dataset, tmp_path: Path, augmentation: Augmentation
) -> None:
    network = Notes([(0.2, 3.0)] * 3)
    options = FinetuneOptions("top", epochs=2, batch_size=5, learning_rate=0.5, schedule="cosine")
    trained(dataset, tmp_path, network, replace(options, augmentation=augmentation))
    assert len(network.validated) == 3  # before the first epoch, and after each
    for pixels, labels in network.validated:
        assert np.array_equal(pixels, np.stack(squares(dataset, VAL)))
        assert labels.tolist() == [0, 1, 2, 0, -1]
    assert network.begun == [(4, 1, 0.5), (4, 2, 0.25)]  # seed, epoch, learning rate
    orders = []
    for epoch in (1, 2):
        batches = network.trained[:3] if epoch == 1 else network.trained[3:]
        assert [len(labels) for _, labels, _ in batches] == [5, 5, 2]
        shown = {pixels.tobytes(): int(label) for parts in batches for pixels, label in zip(*parts[:2], strict=True)}
        keys = [bytes(key).ljust(32, b"\0") for key in dataset.keys[list(TRAIN)]]
        views = [
            (random_view(pixels, augmentation, key, epoch) if augmentation is BENT else pixels).tobytes()
            for pixels, key in zip(squares(dataset, TRAIN), keys, strict=True)
        ]
        assert shown == dict(zip(views, [0] * 6 + [1] * 4 + [2] * 2, strict=True))
        orders.append([views.index(view) for view in shown])
    assert sorted(orders[0]) == sorted(orders[1]) == list(TRAIN) and orders[0] != orders[1] != list(TRAIN)


@pytest.mark.parametrize(("class_weight", "expected"), [(None, [1, 1, 1]), ("balanced", [12 / 18, 12 / 12, 12 / 6])])
def test_rare_classes_weigh_more_where_that_was_asked_for(
    dataset: Dataset, tmp_path: Path, class_weight: str | None, expected: list[float]
) -> None:
    """n / (k * count), scikit-learn's, counted on training rows alone."""
    network = Notes([(0.2, 3.0)] * 2)
    trained(dataset, tmp_path, network, FinetuneOptions("top", epochs=1, batch_size=12), class_weight)
    ((_, labels, weights),) = network.trained
    np.testing.assert_allclose(weights, np.array(expected, np.float32)[labels])


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.4, 1.0), (0.6, 2.0), (0.6, 2.0)], 1),  # more right, though the loss is higher; the first of equals
        ([(0.4, 1.0), (0.2, 0.1), (0.4, 0.9)], 2),  # as many right at a lower loss; not the lowest loss
        ([(0.4, 1.0), (0.4, 1.0), (0.4, 1.1)], 0),  # none is better than the start
        ([(0.4, 1.0), (0.8, 1.0), (0.6, 0.2)], 1),  # compared with the best, not with the one before
        ([(0.8, 1.0), (0.4, 0.1), (0.6, 0.1)], 0),
    ],
)
def test_the_best_epoch_has_most_right_and_then_the_lowest_loss(
    dataset: Dataset, tmp_path: Path, scores: list[tuple[float, float]], best: int
) -> None:
    course = trained(dataset, tmp_path, Notes(scores), FinetuneOptions("top", epochs=2, batch_size=12))
    assert course.best_epoch == best and [int(array[0]) for array in course.best] == [best]
    told = [course.start, *course.history]
    assert [(row["val_accuracy"], pytest.approx(row["val_loss"])) for row in told] == scores
    assert [row["accuracy"] for row in course.history] == [1.0, 1.0] and len(told) == 3
