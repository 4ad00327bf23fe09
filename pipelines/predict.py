"""Predict the labels of images with a stored head; only images whose features the store lacks are embedded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePath
from typing import Any, TypeVar

import numpy as np

from featurestore.errors import ImageError, SpecMismatch, UsageError
from featurestore.schema import storable
from featurestore.spec import FeatureSpec, Preprocessing
from featurestore.store import FeatureStore
from heads.base import Head
from pipelines.backbones import PUBLISHED, canary, finetuned, kept
from pipelines.backbones.engines import Engine, open_engine
from pipelines.backbones.table import Tap, feature_spec, resolve
from pipelines.embedding.worker import OVERFLOW
from pipelines.images import decoder
from pipelines.options import PredictOptions
from pipelines.sources import corpus, places
from pipelines.stored_heads import Say, find_head, head_of

Out = TypeVar("Out")


@dataclass
class Prediction:
    """The prediction for one image; if there is none, ``label`` is None and ``error`` says why.

    ``given`` is the path or URI as the caller wrote it, to show to people; programs should use ``uri``.
    """

    uri: str
    label: str | None = None
    probability: float | None = None
    top: list[tuple[str, float]] = field(default_factory=list)
    error_type: str | None = None
    error: str | None = None
    given: str = ""

    @property
    def name(self) -> str:
        """The image's path or URI as the caller wrote it, or its URI if that has unprintable characters."""
        return self.given if self.given.isprintable() and self.given else self.uri

    def to_json(self) -> dict[str, Any]:
        """Return an element of the list that ``penult predict --json`` prints."""
        value = asdict(self)
        del value["given"]
        return value if self.error else {k: v for k, v in value.items() if not k.startswith("error")}


def predict(
    pictures: list[str],
    store: str | PurePath,
    head_id: str | None = None,
    options: PredictOptions = PredictOptions(),
    say: Say = lambda _: None,
) -> list[Prediction]:
    """Predict the labels of images, in the given order; nothing is written to the store.

    Args:
        pictures: paths or URIs.
        store: the store's folder.
        head_id: which head of the store, see ``find_head``.
        options: how many labels to return with their probabilities, the backbone's weights file if it has moved since
            the set was embedded, and the engine that embeds the images whose features the store lacks.
        say: called with a line for people, which names the head if ``head_id`` is None.

    Raises:
        UsageError: no image is given, or an option is invalid.
        StoreNotFound, StoreCorrupt, HeadError: the head cannot be found or loaded.
        SpecMismatch: these weights cannot compute the features of the head's fingerprint, or the backbone gives other
            features than when the set was made.
    """
    if not pictures:
        raise UsageError("Expected: at least one image to predict. Got: none.")
    options.check()
    opened = FeatureStore(store)
    head, meta = head_of(opened, find_head(opened, head_id, say=say))
    predictions = [Prediction(p if corpus.is_uri(p) else corpus.uri_of(p), given=p) for p in pictures]
    X = _features(opened, meta["feature_set"], predictions, options)
    _answer(predictions, head, X, options.top)
    return predictions


def tap_of(store: FeatureStore, feature_set: str, weights: str | None = None) -> Tap:
    """Return the tap (backbone, weights and layer) that computes the features of a stored set.

    Raises:
        SpecMismatch: the set was not made with these weights.
    """
    spec = store.spec(feature_set)
    tuned = finetuned.weights_in(store, spec.weights_sha256)
    if weights is None:
        weights = tuned
    if weights is None:
        embeds = (r for r in reversed(store.runs()) if r.kind == "embed" and r.result["feature_set"] == feature_set)
        weights = next((run.parameters["weights"] for run in embeds), PUBLISHED)
    seen, find = spec.preprocessing, kept.finder(spec.backbone)
    if find is not None:
        tap = find(store.path, spec.backbone)
        tap = tap if tuned is None else replace(tap, weights=tuned)
    else:
        tap = resolve(spec.backbone, weights, spec.layer, spec.pooling, seen.input_size, seen.crop)
    actual = feature_spec(tap, spec.width, spec.precision, spec.dtype, spec.augmentation)
    if actual != spec:
        raise SpecMismatch(f"{feature_set} cannot be computed here ({spec.difference(actual)}): give --weights FILE.")
    return tap


def _key(prediction: Prediction) -> bytes | None:
    """Return the sha256 of an image's bytes; if it cannot be read, note why in its prediction and return None."""
    try:
        return hashlib.sha256(corpus.read(prediction.uri)[0]).digest()
    except ImageError as error:
        _fail(prediction, error)
        return None


def _decoded(prediction: Prediction, seen: Preprocessing) -> np.ndarray | None:
    """Return an image's pixels; if it cannot be read or decoded, note why in its prediction and return None."""
    try:
        return decoder.decode(corpus.read(prediction.uri)[0], seen).pixels
    except ImageError as error:
        _fail(prediction, error)
        return None


def _each(function: Callable[[Prediction], Out], predictions: list[Prediction]) -> list[Out]:
    """Return what a function gives for each prediction; images of far places are read at once."""
    with ThreadPoolExecutor(max(places.in_flight(prediction.uri) for prediction in predictions)) as pool:
        return list(pool.map(function, predictions))


def _features(
    store: FeatureStore, feature_set: str, predictions: list[Prediction], options: PredictOptions
) -> np.ndarray:
    """Return features float32 (n, d): those that the set holds, the others embedded; note what cannot be embedded."""
    X, found = _stored(store, feature_set, _each(_key, predictions))
    missing = [i for i, prediction in enumerate(predictions) if not found[i] and prediction.error is None]
    if missing:
        spec = store.spec(feature_set)
        run = open_engine(
            tap_of(store, feature_set, options.weights), replace(options.engine, precision=spec.precision)
        )
        canary.check(store, feature_set, run)
        for start in range(0, len(missing), run.batch_size):
            _embed(missing[start : start + run.batch_size], predictions, run, X, spec)
    return X


def _stored(store: FeatureStore, feature_set: str, keys: list[bytes | None]) -> tuple[np.ndarray, np.ndarray]:
    """Read stored vectors: X float32 (n, d), and which were found, bool (n,)."""
    wanted = np.array([key or bytes(32) for key in keys], "S32")
    unique, inverse = np.unique(wanted, return_inverse=True)
    X, found = store.vectors(feature_set, unique)
    return X[inverse], found[inverse] & np.array([key is not None for key in keys])


def _embed(rows: list[int], predictions: list[Prediction], run: Engine, X: np.ndarray, spec: FeatureSpec) -> None:
    """Embed images into their rows of X, rounded to the set's dtype; note an error where features cannot be stored."""
    pixels = _each(lambda prediction: _decoded(prediction, spec.preprocessing), [predictions[i] for i in rows])
    decoded = {i: one for i, one in zip(rows, pixels, strict=True) if one is not None}
    if decoded:
        made, vectors = np.array(list(decoded)), run(np.stack(list(decoded.values())))
        good = storable(vectors, spec.dtype)
        for i in made[~good]:
            _fail(predictions[i], OVERFLOW)
        X[made[good]] = vectors[good].astype(spec.dtype)


def _answer(predictions: list[Prediction], head: Head, X: np.ndarray, top: int) -> None:
    """Fill in the labels of the images that have features, rows of X; note an error where the head overflows."""
    good = [i for i, prediction in enumerate(predictions) if prediction.error is None]
    with np.errstate(over="ignore", invalid="ignore"):
        probabilities = head.probabilities(X[good])
    for i, row in zip(good, probabilities, strict=True):
        if not np.isfinite(row).all():  # very large float32 features overflow in the head
            _fail(predictions[i], OVERFLOW)
            continue
        order = np.argsort(-row, kind="stable")[:top]
        predictions[i].top = [(str(head.classes[c]), float(row[c])) for c in order]
        predictions[i].label, predictions[i].probability = predictions[i].top[0]


def _fail(prediction: Prediction, error: ImageError) -> None:
    prediction.error_type, prediction.error = error.error_type, str(error)
