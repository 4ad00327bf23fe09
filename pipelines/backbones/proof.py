"""The proof of a network that a user adds: one picture gives the vector that the network's home framework gave.

If it does not, the usual mistakes are tried, and the message says with which change of the spec it does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from itertools import combinations, product
from typing import Any

import numpy as np

from featurestore.errors import BackboneError, ImageError, UsageError
from pipelines.backbones import quantized
from pipelines.backbones.base import Content
from pipelines.backbones.graphs import import_openvino, tensors
from pipelines.backbones.model_spec import INTERPOLATIONS, LAYOUTS, RESIZES, ModelSpec, Reference
from pipelines.backbones.pooling import POSITIONS, TOKENS
from pipelines.images import decoder

COSINE = 0.9999  # the least, in float32: engines differ by 1e-6, half a grey level by 2e-6, any usual mistake by more
LENGTH = 0.01  # the most by which a vector may be longer or shorter, as a share
SEARCH_SECONDS = 60.0
MAX_ROUNDING = 0.2  # the most that a quantised graph's vector may be away, as a share of its length: a cosine of 0.98
ROUNDINGS = 2.0  # of the two runtimes
NEARER = 2.0
MAX_VECTOR_BYTES = 1 << 24
MAX_TAPS = 200  # other outputs that are tried, the last ones

# As networks are trained: in 0 to 1, by ImageNet's mean and deviation, in -1 to 1, CLIP's, and Caffe's means.
SCALES: tuple[dict[str, Any], ...] = (
    {"scale": 1.0, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    {"scale": 1 / 255, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    {"scale": 1 / 255, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    {"scale": 1 / 255, "mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)},
    {"scale": 1.0, "mean": (123.68, 116.779, 103.939), "std": (1.0, 1.0, 1.0)},
    {"scale": 1.0, "mean": (103.939, 116.779, 123.68), "std": (1.0, 1.0, 1.0)},
)
CROP_RATIOS = (1.0, 0.875, 0.9, 0.95)
UNEXPLAINED = (
    "No usual mistake explains it (channels, scale, mean, std, resize, interpolation, output, pooling): "
    "make the vector anew in the network's home framework, from this very picture."
)
FILLS = ((114, 114, 114), (128, 128, 128), (124, 116, 104), (255, 255, 255))  # YOLO's, grey, ImageNet's mean, white


def check(content: Content, spec: ModelSpec, layer: str, reference: Reference) -> tuple[float, float | None]:
    """Return the cosine of a network's vector of the reference's picture and the vector that is expected.

    Beside it, if a quantised graph needed its rounding to be allowed for, the cosine that this rounding alone gives.

    Args:
        content: the graph, as it was added.
        spec: its spec.
        layer: the name of the tapped output.
        reference: a picture and its vector.

    Raises:
        BackboneError: they do not match; the message says what would make them match, if a usual mistake explains it.
    """
    wanted = _vector(reference)
    trial = _Trial(content, reference.image.read_bytes())
    spec = replace(spec, output=layer)
    try:
        got = trial.vector(spec)
    except ImageError as error:
        raise BackboneError(f"The reference {reference.image} cannot be decoded: {error}") from error
    if got is not None and matches(got, wanted):
        return cosine(got, wanted), None
    said = f"{reference.image} does not give the vector of {reference.vector}: {_apart(got, wanted)}"
    if got is not None and trial.is_quantized:
        rounding = _check_quantized(trial, spec, got, wanted, said)
        return cosine(got, wanted), rounding
    since = time.monotonic()
    for group in mistakes(spec, trial.outputs):
        best, changes = max(((trial.closeness(spec, changes, wanted), changes) for changes in group), key=_first)
        if best >= COSINE:
            raise BackboneError(f"{said}. With {_written(changes)} it matches: correct the spec.")
        if time.monotonic() - since > SEARCH_SECONDS:
            break
    raise BackboneError(f"{said}. {UNEXPLAINED}")


def vector(content: Content, spec: ModelSpec, picture: bytes) -> np.ndarray | None:
    """Return a network's vector of a picture's bytes, float32 (d,), by itself; None if it gives none."""
    return _Trial(content, picture).vector(spec)


def _check_quantized(trial: _Trial, spec: ModelSpec, got: np.ndarray, wanted: np.ndarray, said: str) -> float:
    """Return the cosine that the graph's own rounding gives, which is more than the two vectors differ by.

    Two runtimes round an 8-bit graph at other places: LiteRT's two sets of kernels agree on EfficientNet-Lite0 to a
    cosine of 0.9992 to 0.9995. So a vector may be ``ROUNDINGS`` times as far away as the one without any rounding is.
    Small mistakes could hide within this, so none of the usual ones may come ``NEARER`` times as near.

    Raises:
        BackboneError: the vector is farther away, or a usual mistake explains it better.
    """
    exact = trial.unrounded(spec)
    allowed, away = min(ROUNDINGS * distance(exact, got), MAX_ROUNDING), distance(got, wanted)
    groups = single_mistakes(spec, trial.outputs)[:-1]  # another output would be of another length
    tried = [(distance(trial.tried(spec, changes), wanted), changes) for group in groups for changes in group]
    nearest, changes = min(tried, key=_first)
    if nearest <= min(allowed, away / NEARER):
        raise BackboneError(f"{said}. With {_written(changes)} it matches much better: correct the spec.")
    if away > allowed:
        raise BackboneError(
            f"{said}; a quantised graph may be {ROUNDINGS:.0f} times as far away as its own rounding moves it, to "
            f"{cosine(exact, got):.5f}. {UNEXPLAINED}"
        )
    return cosine(exact, got)


def mistakes(spec: ModelSpec, outputs: Iterable[str]) -> Iterator[list[dict[str, Any]]]:
    """Yield changes of a spec that would undo usual mistakes, those of one kind together; then every two of them."""
    singles = single_mistakes(spec, outputs)
    yield from singles
    for one, other in combinations(singles[:-1], 2):
        yield [{**a, **b} for a, b in product(one, other)]


def single_mistakes(spec: ModelSpec, outputs: Iterable[str]) -> list[list[dict[str, Any]]]:
    """Return changes of a spec that would undo one usual mistake, those of one kind together; other outputs last."""
    told = asdict(spec)
    black = {"fill": (0, 0, 0)} if any(spec.fill) else {}
    ratios = {"squash": CROP_RATIOS, "crop": CROP_RATIOS}  # others are used without one
    shapes: list[dict[str, Any]] = [
        {"resize": name, "crop_ratio": ratio, **black} for name in RESIZES for ratio in ratios.get(name, (1.0,))
    ]
    shapes += [{"resize": "pad", "crop_ratio": 1.0, "fill": fill} for fill in FILLS]
    poolings: list[dict[str, Any]] = [{"pooling": kind} for kind in dict.fromkeys(TOKENS + POSITIONS)]
    poolings += [{"pooling": "avg", "prefix_tokens": prefix} for prefix in (0, 1, 5)]
    groups: list[list[dict[str, Any]]] = [
        [{"channels": "BGR" if spec.channels == "RGB" else "RGB"}],
        [{"mean": spec.mean[::-1], "std": spec.std[::-1]}, *SCALES],
        shapes,
        [dict(zip(("interpolation", "antialias"), pair, strict=True)) for pair in INTERPOLATIONS],
        poolings,
        [{"output_layout": layout} for layout in LAYOUTS],
        [{"l2": not spec.l2}],
        [{"output": name} for name in list(outputs)[::-1][:MAX_TAPS]],
    ]
    return [some for group in groups if (some := [one for one in group if _changed(one, told)])]


def matches(got: np.ndarray | None, wanted: np.ndarray) -> bool:
    """Return whether two vectors have nearly the same direction and length."""
    if got is None or got.shape != wanted.shape or not np.isfinite(got).all():
        return False
    longer = float(np.linalg.norm(got)) / max(float(np.linalg.norm(wanted)), 1e-30)
    return cosine(got, wanted) >= COSINE and abs(longer - 1) <= LENGTH


def distance(got: np.ndarray | None, wanted: np.ndarray) -> float:
    """Return how far a vector (d,) is from another, as a share of the other's length; infinity if it is none."""
    if got is None or got.shape != wanted.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.linalg.norm(got - wanted)) / max(float(np.linalg.norm(wanted)), 1e-30)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the cosine of the angle between two vectors (d,)."""
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(a.astype(np.float64) @ b.astype(np.float64)) / max(lengths, 1e-30)


class _Trial:
    """A network and a picture, to be tried with one spec after another; steps are in numpy, one picture at a time."""

    def __init__(self, content: Content, picture: bytes) -> None:
        self._core = import_openvino().Core()
        self._content, self._picture = content, picture
        self._networks: dict[tuple[Any, ...], Any] = {}
        self._pixels: dict[Any, np.ndarray] = {}
        self._round = True
        graph = self._core.read_model(*content)
        self.outputs = list(tensors(graph))
        self.is_quantized = quantized.is_quantized(graph)

    def vector(self, spec: ModelSpec, width: int | None = None) -> np.ndarray | None:
        """Return float32 (d,); None if the network gives no vector so, or one that is known to be of another width.

        Raises:
            ImageError: the picture cannot be decoded.
        """
        seen = spec.preprocessing()
        square = replace(seen, normalization="")
        if square not in self._pixels:
            self._pixels[square] = decoder.decode(self._picture, square).pixels
        if (network := self._network(spec, width)) is None:
            return None
        given = spec.normalization().applied(self._pixels[square][None], spec.layout)
        return np.array(network(given)[0])[0].ravel()

    def unrounded(self, spec: ModelSpec) -> np.ndarray:
        """Return the vector of a quantised graph without its rounding, float32 (d,)."""
        self._round = False
        try:
            vector = self.vector(spec)
        finally:
            self._round = True
        assert vector is not None  # with the rounding there is one
        return vector

    def tried(self, spec: ModelSpec, changes: dict[str, Any], width: int | None = None) -> np.ndarray | None:
        """Return the changed spec's vector, float32 (d,); None if it has none, or one known to be of another width."""
        tried = replace(spec, **changes)
        try:
            tried.check()
        except UsageError:
            return None
        return self.vector(tried, width)

    def closeness(self, spec: ModelSpec, changes: dict[str, Any], wanted: np.ndarray) -> float:
        """Return the cosine of the changed spec's vector and the wanted one; -1 if it is too long, short or none."""
        got = self.tried(spec, changes, len(wanted))
        return cosine(got, wanted) if got is not None and matches(got, wanted) else -1.0

    def _network(self, spec: ModelSpec, width: int | None) -> Any:
        key = (spec.output, spec.pooled(), spec.size, spec.layout, self._round, width)
        if key not in self._networks:
            try:
                self._networks[key] = self._compiled(spec, width)
            except Exception:  # no such tensor, or one that cannot be pooled so: not this mistake
                self._networks[key] = None
        return self._networks[key]

    def _compiled(self, spec: ModelSpec, width: int | None) -> Any:
        """Return the network up to the tapped output; None, without the time to compile it, if it is not as wide."""
        from openvino import opset13 as ops

        graph, side = self._core.read_model(*self._content), spec.size
        if not self._round:
            quantized.unround(graph)
        graph.reshape([1, side, side, 3] if spec.layout == "NHWC" else [1, 3, side, side])
        features = spec.pooled().of(tensors(graph)[spec.output], spec.layout)
        found = features.get_partial_shape()[1]
        if width is not None and found.is_static and found.get_length() != width:
            return None
        for result in graph.get_results():
            graph.remove_result(result)
        graph.add_results([ops.result(ops.convert(features, "f32"))])
        return self._core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def _vector(reference: Reference) -> np.ndarray:
    """Return the vector that is expected, float32 (d,); those of shape (1, d) are taken too."""
    try:
        if reference.vector.stat().st_size > MAX_VECTOR_BYTES:
            raise ValueError(f"more than {MAX_VECTOR_BYTES:,} bytes")
        vector = np.load(reference.vector, allow_pickle=False)
        if not isinstance(vector, np.ndarray) or vector.dtype.kind != "f" or vector.size != max(vector.shape or (0,)):
            raise ValueError("no vector of floats")
    except (OSError, ValueError, EOFError) as error:
        raise BackboneError(f"Expected: {reference.vector}, a vector saved by numpy.save. Got: {error}.") from error
    return vector.ravel().astype(np.float32)


def _apart(got: np.ndarray | None, wanted: np.ndarray) -> str:
    if got is None:
        return "the output cannot be pooled so"
    if got.shape != wanted.shape:
        return f"{len(got):,} numbers instead of {len(wanted):,}"
    longer = float(np.linalg.norm(got)) / max(float(np.linalg.norm(wanted)), 1e-30)
    return f"cosine {cosine(got, wanted):.5f} and {longer:.3g} times as long, at least {COSINE} and 1 is needed"


def _first(pair: tuple[float, dict[str, Any]]) -> float:
    return pair[0]


def _changed(changes: dict[str, Any], told: dict[str, Any]) -> bool:
    return any(told[key] != value for key, value in changes.items())


def _written(changes: dict[str, Any]) -> str:
    """Return changes as lines of the spec."""

    def value(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        return f'"{value}"' if isinstance(value, str) else str(list(value) if isinstance(value, tuple) else value)

    return ", ".join(f"{key} = {value(told)}" for key, told in changes.items())
