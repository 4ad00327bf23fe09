"""Heads as Keras layers: the same scores and probabilities as numpy gives."""

from functools import cache

import numpy as np
import pytest

from featurestore.errors import HeadError
from heads import registry
from heads.backend import import_keras
from heads.spec import HeadSpec
from pipelines import keras_head

SMALL = {"dense": {"hidden": [12, 7], "epochs": 3, "dropout": 0.5}}


@cache
def fitted(family, classes):
    """A head of badly scaled features: one column constant, one nearly, one large."""
    draw = np.random.default_rng(0)
    y = draw.integers(0, classes, 200)
    X = draw.normal(size=(200, 24)).astype(np.float32) + draw.normal(size=(classes, 24)).astype(np.float32)[y]
    X[:, 0], X[:, 1], X[:, 2] = 3, 1 + 1e-6 * X[:, 1], 1e4 * X[:, 2]
    names = np.array([f"class {i}" for i in y])
    return registry.fit(HeadSpec(family, SMALL.get(family, {})), X, names, validation=(X[:50], names[:50])), X


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("family", [name for name in registry.FAMILIES if name != "knn"])
def test_layers_give_the_heads_scores(family, classes):
    head, X = fitted(family, classes)
    scores = head.scores(X)
    found = keras_head.as_layers(head)(X).numpy()
    assert found.dtype == np.float32 and found.shape == scores.shape
    assert abs(found - scores).max() <= 2e-6 * abs(scores).max()
    probabilities = keras_head.with_probabilities(head)(X).numpy()
    assert abs(probabilities - head.probabilities(X)).max() < 1e-5


@pytest.mark.parametrize("family", ["logreg", "dense", "kernel-svm", "rbf-svm"])
def test_layers_come_back_from_a_file_in_safe_mode(family, tmp_path):
    head, X = fitted(family, 4)
    keras_head.as_layers(head).save(tmp_path / "head.keras")
    loaded = import_keras().saving.load_model(tmp_path / "head.keras", safe_mode=True)
    assert abs(loaded(X).numpy() - head.scores(X)).max() <= 2e-6 * abs(head.scores(X)).max()


def test_dense_layers_can_be_trained_further():
    head, _ = fitted("dense", 4)
    model = keras_head.as_layers(head)
    assert [tuple(v.shape) for v in model.trainable_variables] == [(24, 12), (12,), (12, 7), (7,), (7, 4), (4,)]
    assert np.array_equal(model.get_layer("dense1").get_weights()[0], head.arrays["kernel1"])


def test_neighbours_are_no_layers():
    with pytest.raises(HeadError, match=r"A knn head cannot become layers.*logreg"):
        keras_head.as_layers(fitted("knn", 4)[0])
