"""Model files that users bring, read as graphs of OpenVINO: ONNX, OpenVINO's IR, SavedModel, Keras and LiteRT.

A file is data from elsewhere. No code in it is run, no file beside it is read but its own weights, and whatever is
wrong with it is one error that names it.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from featurestore.errors import BackboneError, PenultError
from pipelines.backbones import keras_models
from pipelines.backbones.base import Content
from pipelines.backbones.graphs import import_openvino
from pipelines.backbones.keras_models import MAX_BYTES
from pipelines.backbones.quantized import float_ends, widen_weights
from pipelines.backbones.weights import file_digest

if TYPE_CHECKING:
    import openvino

KNOWN = "an .onnx, .xml (with its .bin), .tflite, .keras or .h5 file, or a SavedModel's folder"
MESSAGE_LENGTH = 300  # characters kept of an error
NOISE = ("Exception from", "Check '", "FrontEnd API", "Model wasn't fully", "Summary")  # of OpenVINO's errors
SAVED_MODEL = "saved_model.pb"
GRAPH = ".xml"  # of OpenVINO's IR, which a store keeps anyway
# A StringStringEntryProto of ONNX: field 1 "location", field 2 a path of up to 127 bytes, or of up to 16,383.
LOCATION = re.compile(rb"\x0a\x08location\x12(?:([\x00-\x7f])|([\x80-\xff][\x00-\x7f]))")


def files_of(model: Path) -> list[Path]:
    """Return the files that make up a model, the model's own first.

    Raises:
        BackboneError: there is no such model, it is of another kind, incomplete, too large, or names files elsewhere.
    """
    if not model.exists():
        raise BackboneError(f"There is no model {model}: give {KNOWN}.")
    _check_size(model, [model])
    if model.is_dir():
        files = [model / SAVED_MODEL, *sorted(path for path in model.rglob("variables/*") if path.is_file())]
    elif model.suffix == ".onnx":
        files = [model, *_external(model)]
    elif model.suffix == GRAPH:
        files = [model, model.with_suffix(".bin")]
    elif model.suffix in READERS:
        files = [model]
    else:
        raise BackboneError(f"Expected: {KNOWN}. Got: {model}.")
    for file in files:
        if not file.is_file():
            raise BackboneError(f"Expected: {file}, a part of the model {model.name}. Got: no such file.")
        if not file.resolve().is_relative_to(files[0].parent.resolve()):
            raise BackboneError(f"{file} leads out of the model's folder: put the file itself there.")
    _check_size(model, files)
    return files


def _check_size(model: Path, files: list[Path]) -> None:
    if (size := sum(file.stat().st_size for file in files)) > MAX_BYTES:
        raise BackboneError(f"Expected: a model of up to {MAX_BYTES >> 30} GiB. Got: {model}, {size / 2**30:.1f} GiB.")


def digest_of(files: list[Path]) -> str:
    """Return what stands for a model's content, see ``joined_digest``."""
    return joined_digest({file.relative_to(files[0].parent).as_posix(): file_digest(file) for file in files})


def joined_digest(digests: Mapping[str, str]) -> str:
    """Return the sha256 of a model's one file, or of the names and sha256 of its files, in hex."""
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = sorted(f"{name} {sha256}\n" for name, sha256 in digests.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read(model: Path) -> openvino.Model:
    """Return a model as a graph of OpenVINO.

    Raises:
        BackboneError: see ``files_of``; or it is damaged, needs code of its own, or has an operation that OpenVINO
            lacks.
    """
    files_of(model)
    reader = READERS["" if model.is_dir() else model.suffix]
    with reading(model):
        graph = reader(model)
        widen_weights(graph)
        return graph


@contextmanager
def reading(model: Path) -> Iterator[None]:
    """Turn whatever a reader of models happens to raise into a BackboneError that names the model."""
    try:
        yield
    except PenultError:
        raise
    except Exception as error:
        raise BackboneError(f"{model} cannot be read as a network: {first_line(error)}") from error


def as_content(graph: openvino.Model) -> Content:
    """Return a graph as the two files of OpenVINO's IR, numbers as they are."""
    with tempfile.TemporaryDirectory(prefix="penult-") as folder:
        path = Path(folder) / "graph.xml"
        import_openvino().save_model(graph, path, compress_to_fp16=False)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()


def _by_openvino(model: Path) -> openvino.Model:
    return import_openvino().Core().read_model(model)


def _of_litert(model: Path) -> openvino.Model:
    graph = _by_openvino(model)
    float_ends(graph)
    return graph


READERS: dict[str, Callable[[Path], Any]] = {
    "": _by_openvino,  # a SavedModel's folder
    ".onnx": _by_openvino,
    GRAPH: _by_openvino,
    ".tflite": _of_litert,
    ".keras": keras_models.read,
    ".h5": keras_models.read,
}


def _external(model: Path) -> list[Path]:
    """Return the files with weights that an ONNX file names, each in its folder."""
    found: dict[str, Path] = {}
    try:
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for match in LOCATION.finditer(data):
                one, two = match.groups()
                length = one[0] if one else (two[0] & 0x7F) | two[1] << 7
                name = data[match.end() : match.end() + length].decode(errors="replace")
                if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
                    raise BackboneError(f"{model} names weights outside its folder ({name!r}): take another file.")
                found[name] = model.parent / name
    except (OSError, ValueError) as error:
        raise BackboneError(f"{model} cannot be read: {error}.") from error
    return list(found.values())


def first_line(error: Exception) -> str:
    """Return the line of an error that says most, short enough for a sentence."""
    lines = [line.strip(" -:") for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(NOISE)]
    missing = (line for line in telling if line.startswith("No conversion rule"))
    said = next(missing, telling[0] if telling else type(error).__name__)
    return said[:MESSAGE_LENGTH].rstrip(".") + "."
