"""The canary of a feature set: vectors of built-in pictures, kept beside the set's rows.

A fingerprint names the preprocessing and the network. It does not change if the code, a library or the weights of that
name give other numbers; these vectors do. ``pipelines.backbones.canary`` computes them; this module stores and compares
them.
"""

from __future__ import annotations

import base64
import platform
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path, PurePath

import numpy as np

from featurestore import layout
from featurestore.errors import FormatError, SpecMismatch, StoreCorrupt
from featurestore.storage.files import read_sealed, stat, write_sealed

FORMAT = 1  # of the set of images and of the file
MAX_BYTES = 1 << 28
LIBRARIES = ("keras", "numpy", "openvino", "penult", "pillow", "simplejpeg", "tensorflow")  # they decode or compute

# Length of the difference as a share of the vector's own length. If small, it is about sqrt(2 (1 - cosine)), and it
# also shows a change of scale. In f32, engines differ by 2e-6; half a grey level in the normalisation gives 2e-3, at
# cosine 0.999998. In bf16, rounding alone gives 0.04 to 0.12 against f32 (cosine 0.9993 to 0.993), and the rounding of
# another processor may differ as much.
MAX_DEVIATION = {"f32": 1e-3, "bf16": 0.2}


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in LIBRARIES}


def _processor() -> str:
    """Return the processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(named, platform.processor())} {platform.machine()}".strip()


@dataclass(frozen=True)
class Canary:
    """Vectors of the built-in pictures, and the libraries and processor that computed them.

    Attributes:
        vectors: float32 (d,) by the name of the picture.
        versions: versions of the libraries, by name.
        processor: name of the processor.
    """

    vectors: dict[str, np.ndarray]
    versions: dict[str, str] = field(default_factory=_versions)
    processor: str = field(default_factory=_processor)


def read(table: PurePath) -> Canary | None:
    """Return the canary of a feature set; None if it has none, as in stores of older versions.

    Args:
        table: the folder of the set.

    Raises:
        StoreCorrupt: the canary is damaged, or another set's.
        FormatError: a newer penult wrote the canary.
    """
    path = table / layout.CANARY
    if stat(path) is None:
        return None
    told = read_sealed(path, required=True, limit=MAX_BYTES)
    if type(told.get("format")) is int and told["format"] > FORMAT:
        raise FormatError(f"{path} has format {told['format']}, this penult reads {FORMAT}: install a newer penult.")
    if told.get("set") != table.stem:
        raise StoreCorrupt(f"Expected: the canary of {table.stem} in {path}. Got: another set's.")
    try:
        vectors = {name: np.frombuffer(base64.b64decode(text), "<f4") for name, text in told["vectors"].items()}
        return Canary(vectors, dict(told["versions"]), str(told["processor"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreCorrupt(f"Expected in {path}: vectors, versions, processor. Got: something else.") from error


def write(table: PurePath, canary: Canary) -> None:
    """Replace the canary of a feature set, atomically and durably; the store's lock must be held.

    Raises:
        StoreError: the file cannot be written.
    """
    vectors = {name: base64.b64encode(v.astype("<f4").tobytes()).decode() for name, v in canary.vectors.items()}
    told = {"set": table.stem, "format": FORMAT, "processor": canary.processor, "versions": canary.versions}
    write_sealed(table / layout.CANARY, told | {"vectors": vectors}, MAX_BYTES)


def compare(feature_set: str, then: Canary, now: Canary, precision: str) -> None:
    """Compare the canary that a set keeps with one computed now.

    Args:
        feature_set: name of the set, for the error.
        then, now: the kept canary and the new one, with vectors of the same images.
        precision: precision of the forward pass, a key of ``MAX_DEVIATION``.

    Raises:
        SpecMismatch: a vector deviates from the kept one by more than ``MAX_DEVIATION``.
    """
    limit, off = MAX_DEVIATION[precision], []
    for name, vector in then.vectors.items():
        got = now.vectors.get(name, np.empty(0, np.float32))
        if not deviation(vector, got) <= limit:  # also true for NaN
            off.append(f"{name} {described(vector, got)}")
    if off:
        raise SpecMismatch(
            f"Expected: the built-in pictures with the vectors of when {feature_set} was made, within {limit:.1%} of "
            f"their length. Got: {', '.join(off)}, {changes(then, now)}."
        )


def deviation(then: np.ndarray, now: np.ndarray) -> float:
    """Return the length of the difference of two vectors (d,) as a share of the first's length; 0 if both are zeros."""
    if then.shape != now.shape:
        return float("inf")
    a, b = then.astype(np.float64), now.astype(np.float64)
    length, apart = float(np.linalg.norm(a)), float(np.linalg.norm(a - b))
    return apart / length if length else float("inf") if apart else 0.0


def described(then: np.ndarray, now: np.ndarray) -> str:
    """Return how far a vector is from what it was, as a phrase for an error."""
    if then.shape != now.shape:
        return f"of {len(now)} numbers instead of {len(then)}"
    a, b = then.astype(np.float64), now.astype(np.float64)
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / lengths if lengths else float(not deviation(then, now))
    return f"off by {deviation(then, now):.2%} (cosine {cosine:.6f})"


def changes(then: Canary, now: Canary) -> str:
    """Return the end of a sentence: what differs between two environments and what to do about it."""
    differ = [
        f"{name} {now.versions[name]} instead of {version}"
        for name, version in sorted(then.versions.items())
        if now.versions.get(name, version) != version
    ]
    if then.processor and now.processor != then.processor:
        differ.append(f"the processor {now.processor} instead of {then.processor}")
    if differ:
        return f"with {', '.join(differ)}: go back to what it was, or embed everything into another --store"
    return (
        "with the same libraries and processor, so the code, the weights or the cached graph have changed: undo that "
        "(an emptied folder $PENULT_CACHE rules out the graph), or embed everything into another --store"
    )
