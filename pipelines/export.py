"""Export a head and its backbone as one model, which is checked on real images before it is kept.

The model takes uint8 pixels (n, s, s, 3), RGB, and gives probabilities float32 (n, c). Normalisation, backbone,
standardisation, head and temperature are inside the model. Its users must decode and resize images to s×s pixels
themselves, with ``pipelines.images.decoder.decode`` or another decoder that follows the same rules.
"""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from featurestore.errors import EngineError, HeadError, PenultError, SourceError, SpecMismatch, UsageError
from featurestore.index import contains
from featurestore.schema import keys_of
from featurestore.spec import FeatureSpec
from featurestore.storage.files import write_json, write_text
from featurestore.store import FeatureStore
from heads.backend import import_keras, import_tensorflow
from heads.base import Head
from pipelines import joined_graphs, keras_head
from pipelines.backbones import canary, graphs, networks
from pipelines.backbones.engines import open_engine
from pipelines.backbones.table import Tap
from pipelines.folders import check_new, whole_folder
from pipelines.options import ExportOptions
from pipelines.predict import tap_of
from pipelines.stored_heads import Say, find_head, head_of

if TYPE_CHECKING:
    import keras

TOLERANCE = 1e-3  # largest difference of a probability
PICTURES = 32  # images on which the exported model is checked
LABELS, DESCRIPTION = "labels.txt", "model.json"

Run = Callable[[np.ndarray], np.ndarray]  # uint8 (n, s, s, 3) → float32 (n, c)


class Format(NamedTuple):
    """One export format: the model's file name, how to write it, and how to load it with the format's own runtime."""

    file: str
    write: Callable[[keras.Model, Path], None]
    load: Callable[[Path], Run]
    packages: tuple[str, ...] = ()  # that the format needs, from the extra "export"


def export(
    store: str | PurePath,
    to: str | Path,
    options: ExportOptions = ExportOptions(),
    head_id: str | None = None,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """Write a folder with the model, ``labels.txt`` (a class per line, in the order of the outputs) and ``model.json``.

    The folder is made complete or not at all. Before that, the model is loaded back by its own runtime and run on up to
    32 images. Its probabilities must be within 1e-3 of those that the head gives for the stored features of these
    images, and within 1e-3 of its own when it gets one image at a time.

    Args:
        store: the store's folder.
        to: the folder to make; it must not exist.
        options: a name of ``FORMATS``, and the backbone's weights file if it has moved since the set was embedded.
        head_id: which head of the store, see ``stored_heads.find_head``.
        say: called with a line for people, which names the head if ``head_id`` is None.

    Returns:
        The object that ``penult export --json`` prints.

    Raises:
        UsageError: no such format, or the folder exists.
        EngineError: a package is missing, the conversion fails, or the model gives other probabilities.
        HeadError: the head cannot become layers, or a class name has more than one line.
        SpecMismatch: the features are in bf16, were made with other weights, or the backbone gives other ones now.
        BackboneError: the backbone is a graph without a Keras model, and the format is not openvino.
        SourceError: no image of the set can be read.
    """
    began, to = time.monotonic(), Path(to)
    format = _format(options.format)
    check_new(to)
    opened = FeatureStore(store)
    head_id = find_head(opened, head_id, say=say)
    head, meta = head_of(opened, head_id)
    spec = opened.spec(meta["feature_set"])
    _check_exportable(head.classes, spec, meta["feature_set"])
    last = keras_head.with_probabilities(head)
    pixels, X = _pictures(opened, meta["feature_set"], spec)
    tap = tap_of(opened, meta["feature_set"], options.weights)
    join = joined_graphs.joiner(tap, options.format)
    model = None if join else _classifier(opened, meta["feature_set"], tap, last)
    if join:
        canary.check(opened, meta["feature_set"], open_engine(tap))
    with whole_folder(to) as fresh:
        with _as_engine_error(f"The {options.format} export of head {head_id} failed"):
            if join:
                join(tap, last, fresh / format.file)
            else:
                format.write(model, fresh / format.file)
            parity = _parity(format.load(fresh / format.file), pixels, head.probabilities(X))
        _check_parity(parity, options.format, spec)
        write_text(fresh / LABELS, "".join(f"{name}\n" for name in head.classes))
        described = {"format": options.format, "model": format.file, "head_id": head_id, **_described(head, spec)}
        write_json(fresh / DESCRIPTION, described | {"parity": parity})
    return {
        "head_id": head_id,
        "format": options.format,
        "path": str(to / format.file),
        "labels": str(to / LABELS),
        "input_size": spec.preprocessing.input_size,
        "classes": len(head.classes),
        "parity": parity,
        "bytes": sum(path.stat().st_size for path in to.rglob("*") if path.is_file()),
        "seconds": round(time.monotonic() - began, 3),
    }


def _described(head: Head, spec: FeatureSpec) -> dict[str, Any]:
    """Return what a user of the model has to know of its input and output."""
    return {
        "head": head.family,
        "fingerprint": spec.fingerprint(),
        "backbone": spec.backbone,
        "preprocessing": asdict(spec.preprocessing),
        "labels": head.classes.tolist(),
    }


def _classifier(store: FeatureStore, feature_set: str, tap: Tap, last: keras.Model) -> keras.Model:
    """Return the model from pixels to probabilities: a set's backbone, checked against the canary, and a head's layers.

    Raises:
        SpecMismatch: the backbone gives other features than when the set was made.
    """
    keras = import_keras()
    first = networks.build(tap)
    canary.check(store, feature_set, first.predict_on_batch)
    return keras.Model(first.input, last(first.output), name="classifier")


# -- formats: write a model, and load it as its users will -----------------------------------------------------------


def _write_keras(model: keras.Model, path: Path) -> None:
    model.save(path)


def _load_keras(path: Path) -> Run:
    model = import_keras().saving.load_model(path, compile=False, safe_mode=True)
    return lambda pixels: np.asarray(model.predict_on_batch(pixels))


def _write_saved_model(model: keras.Model, path: Path) -> None:
    _export(model, path, "tf_saved_model")


def _load_saved_model(path: Path) -> Run:
    tf = import_tensorflow()
    loaded = tf.saved_model.load(str(path))
    return lambda pixels: loaded.serve(tf.constant(pixels))["probabilities"].numpy()


def _write_onnx(model: keras.Model, path: Path) -> None:
    import onnx

    onnx.save(joined_graphs.of_keras(model, "probabilities"), path)


def _write_openvino(model: keras.Model, path: Path) -> None:
    openvino = graphs.import_openvino()
    with tempfile.TemporaryDirectory() as folder:
        _write_saved_model(model, Path(folder))
        openvino.save_model(openvino.convert_model(folder), path, compress_to_fp16=False)


def _load_openvino(path: Path) -> Run:
    core = graphs.import_openvino().Core()
    compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda pixels: compiled(pixels)["probabilities"]


def _write_litert(model: keras.Model, path: Path) -> None:
    _export(model, path, "litert")


def _load_litert(path: Path) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path)).get_signature_runner()
    return lambda pixels: runner(pixels=pixels)["probabilities"]


def _export(model: keras.Model, path: Path, format: str) -> None:
    """Write a model with Keras's own exporter, with a named output and a batch of any size."""
    keras = import_keras()
    named = keras.Model(model.input, {"probabilities": model.output})
    pixels = keras.InputSpec(dtype="uint8", shape=model.input.shape, name="pixels")
    named.export(path, format=format, verbose=False, input_signature=[pixels])


FORMATS = {
    "keras": Format("model.keras", _write_keras, _load_keras),
    "saved_model": Format("saved_model", _write_saved_model, _load_saved_model),
    joined_graphs.ONNX: Format("model.onnx", _write_onnx, joined_graphs.run_onnx, ("onnx", "tf2onnx", "onnxruntime")),
    joined_graphs.OPENVINO: Format("model.xml", _write_openvino, _load_openvino),
    "litert": Format("model.tflite", _write_litert, _load_litert, ("ai_edge_litert",)),
}


# -- checks ----------------------------------------------------------------------------------------------------------


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise UsageError(f"Expected: format {', '.join(FORMATS)}. Got: {name!r}.")
    missing = [package for package in FORMATS[name].packages if importlib.util.find_spec(package) is None]
    if missing:
        raise EngineError(f"The format {name} needs {', '.join(missing)}: run `pip install 'penult[export]'`.")
    return FORMATS[name]


def _check_exportable(classes: np.ndarray, spec: FeatureSpec, feature_set: str) -> None:
    if spec.precision != "f32":
        raise SpecMismatch(
            f"An exported model computes in f32, {feature_set} was computed in {spec.precision}: "
            "embed with `--precision f32` and train a head on that set."
        )
    torn = [str(name) for name in classes if len(str(name).splitlines()) > 1]
    if torn:
        raise HeadError(
            f"{LABELS} has a class per line, and the name of {torn[0]!r} has several: relabel, train again."
        )


def _pictures(store: FeatureStore, feature_set: str, spec: FeatureSpec) -> tuple[np.ndarray, np.ndarray]:
    """Read up to 32 images of a set whose files are still what was embedded, in the order of their sha256.

    Returns:
        pixels: uint8 (n, s, s, 3); X: float32 (n, d), the stored features.
    """
    catalog = store.catalog.read(["uri", "sha256"], "status = 'ok'")
    uris, keys = catalog.column("uri"), keys_of(catalog.column("sha256"))
    order = np.argsort(keys, kind="stable")
    order = order[contains(store.content_keys(feature_set), keys[order])]
    rows = ((uris[int(at)].as_py(), catalog.column("sha256")[int(at)].as_py()) for at in order)
    found = canary.still_there(rows, spec.preprocessing, PICTURES)
    if not found:
        raise SourceError(
            f"None of the images of {feature_set} can be read any more, and an export is checked on them: "
            "put them back where they were."
        )
    X, _ = store.vectors(feature_set, np.array(list(found), keys.dtype))
    return np.stack([pixels for _, pixels in found.values()]), X


def _parity(run: Run, pixels: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    """Return the largest differences between a loaded model's probabilities and those expected.

    "max_difference" compares one batch with the head; "batch_1_against_n" compares that batch with batches of one.
    """
    got = run(pixels)
    if got.shape != expected.shape or got.dtype != np.float32:
        raise EngineError(f"Expected: probabilities float32 {expected.shape}. Got: {got.dtype} {got.shape}.")
    single = np.concatenate([run(pixels[i : i + 1]) for i in range(len(pixels))])
    return {
        "pictures": len(pixels),
        "max_difference": float(np.abs(got - expected).max()),
        "batch_1_against_n": float(np.abs(got - single).max()),
    }


def _check_parity(parity: dict[str, Any], format: str, spec: FeatureSpec) -> None:
    difference, batch = parity["max_difference"], parity["batch_1_against_n"]
    if not difference <= TOLERANCE:  # written so that NaN fails too
        raise EngineError(
            f"The {format} model differs from the head on stored features, nothing was written. "
            f"Expected: probabilities within {TOLERANCE}. Got: {difference:.2g} on {parity['pictures']} images. "
            + (
                "Features stored as float16 are rounded, which a very steep head may magnify: more regularisation "
                "or `embed --dtype float32` helps then."
                if spec.dtype == "float16"
                else ""
            )
        )
    if not batch <= TOLERANCE:
        raise EngineError(
            f"The {format} model answers otherwise one image at a time, nothing was written. "
            f"Expected: probabilities within {TOLERANCE}. Got: {batch:.2g} on {parity['pictures']} images."
        )


@contextlib.contextmanager
def _as_engine_error(what: str) -> Iterator[None]:
    """Turn any error of a converter or a runtime, which raise nearly anything, into an EngineError of one sentence."""
    try:
        yield
    except PenultError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EngineError(f"{what} ({reason}): try another format.") from error
