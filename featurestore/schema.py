"""Arrow schemas of the store's tables, and the conversion of vectors to and from Arrow with a checksum per row."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.errors import StoreCorrupt
from featurestore.spec import FeatureSpec

SPEC_KEY = b"penult.spec"
KEY_BYTES = 32  # of a sha256
IN_CACHE = 2**16  # float32 numbers, which stay in a core's cache
BIAS = np.float32(2.0**112)  # the exponents of float32 are biased by 127, those of float16 by 15
FINEST = np.array([2.0**-136], np.float32)  # the bits of the smallest float16, where float32 has such bits
OK, FAILED = "ok", "failed"

CATALOG = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("sha256", pa.binary(KEY_BYTES)),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("mtime_ns", pa.int64(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("format", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error_type", pa.string()),
        pa.field("error", pa.string()),
        pa.field("run_id", pa.string(), nullable=False),
    ]
)

LABELS_V1 = pa.schema(  # in stores of format version 1
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),
        pa.field("group", pa.string()),
        pa.field("label_set", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
    ]
)
LABELS = pa.schema([*LABELS_V1, pa.field("source", pa.string()), pa.field("listed", pa.bool_())])  # see ``labels``


def features_schema(spec: FeatureSpec) -> pa.Schema:
    """Return the schema of one feature set; its metadata holds the spec."""
    return pa.schema(
        [
            pa.field("sha256", pa.binary(KEY_BYTES), nullable=False),
            pa.field("view", pa.int16(), nullable=False),
            pa.field("vector", pa.list_(pa.from_numpy_dtype(np.dtype(spec.dtype)), spec.width), nullable=False),
            pa.field("checksum", pa.uint64(), nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
        ],
        metadata={SPEC_KEY: spec.to_json().encode()},
    )


def row_keys(sha256: Any, view: Any) -> np.ndarray:
    """Return the keys of rows, content and view as S34 (n,), from two Arrow columns."""
    keys = keys_of(sha256).view(np.uint8).reshape(-1, KEY_BYTES)
    views = np.asarray(view).astype(">i2").view(np.uint8).reshape(-1, 2)
    return np.concatenate([keys, views], axis=1).view(f"S{KEY_BYTES + 2}").reshape(-1)


def spec_of(schema: pa.Schema) -> FeatureSpec:
    """Read the FeatureSpec back from a feature table's schema.

    Raises:
        StoreCorrupt: the schema carries no spec.
    """
    text = (schema.metadata or {}).get(SPEC_KEY)
    if text is None:
        raise StoreCorrupt("Expected: a feature spec in the table's metadata. Got: none; this is no feature set.")
    return FeatureSpec.from_json(text.decode(errors="replace"))


def features_batch(
    schema: pa.Schema, keys: np.ndarray, vectors: np.ndarray, run_id: str, view: int | np.ndarray = 0
) -> pa.RecordBatch:
    """Return rows of a feature set.

    Args:
        schema: from ``features_schema``.
        keys: S32 (n,), sha256 digests.
        vectors: float (n, d); cast to the set's dtype.
        run_id: the run that computed them.
        view: one number for all rows, or int (n,); 0 is the image itself.
    """
    stored = np.ascontiguousarray(vectors, dtype=spec_of(schema).dtype)
    views = np.full(len(keys), view, np.int16)
    return pa.record_batch(
        [
            key_array(keys),
            pa.array(views),
            pa.FixedSizeListArray.from_arrays(pa.array(stored.reshape(-1)), schema.field("vector").type.list_size),
            pa.array(checksums(keys, views, stored)),
            pa.array([run_id] * len(keys), pa.string()),
        ],
        schema=schema,
    )


def storable(vectors: np.ndarray, dtype: str) -> np.ndarray:
    """Return which vectors, float (n, d), are finite and within the range of ``dtype``: bool (n,).

    Any other vector would be stored as infinity or NaN. It must not be stored, and must not be used to predict either.
    """
    return np.abs(vectors).max(axis=1) <= float(np.finfo(dtype).max)  # false for NaN


def key_array(keys: np.ndarray) -> pa.Array:
    """Convert S32 (n,) to Arrow fixed-size binary, without a copy per row."""
    return pa.Array.from_buffers(
        pa.binary(KEY_BYTES), len(keys), [None, pa.py_buffer(np.ascontiguousarray(keys, f"S{KEY_BYTES}"))]
    )


def keys_of(column: Any) -> np.ndarray:
    """Convert Arrow fixed-size binary without nulls to S32 (n,)."""
    if isinstance(column, pa.ChunkedArray):
        return np.concatenate([keys_of(chunk) for chunk in column.chunks] or [np.empty(0, f"S{KEY_BYTES}")])
    start = column.offset * KEY_BYTES
    buffer = column.buffers()[1]
    if buffer is None:
        return np.empty(0, f"S{KEY_BYTES}")
    return np.frombuffer(buffer, f"S{KEY_BYTES}", count=len(column), offset=start)


def vectors_of(column: pa.FixedSizeListArray) -> np.ndarray:
    """Convert Arrow vectors to an array (n, d) in the stored dtype, read-only, without a copy."""
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), column.type.list_size)


def widened(vectors: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield vectors (n, d) in the stored dtype as float32, exactly: rows, and float32 (b, d) that lasts until the next.

    numpy converts float16 number by number. Whole arrays take a sixth of the time: shifted by 13 bits, but for the
    sign, the bits of a float16 are those of a float32 that is too small by a factor of 2^112, also if it is subnormal.
    Left to numpy are infinity and NaN, and all numbers in a thread that takes subnormal ones for 0 (MXCSR.DAZ).
    """
    n, d = vectors.shape
    if vectors.dtype != np.float16:
        yield slice(0, n), vectors
        return
    wide, exact = np.empty((max(1, IN_CACHE // d), d), np.float32), (FINEST * BIAS).all()
    for start in range(0, n, len(wide)):
        part = vectors[start : start + len(wide)]
        to, bits = wide[: len(part)], part.view(np.int16)
        if exact and bits.max() < 0x7C00 and part.view(np.uint16).max() < 0xFC00:
            shifted = to.view(np.int32)
            np.copyto(shifted, bits)  # fills the upper half with the sign
            np.left_shift(shifted, 13, out=shifted)
            np.bitwise_and(shifted, ~0x70000000, out=shifted)
            np.multiply(to, BIAS, out=to)
        else:
            np.copyto(to, part)
        yield slice(start, start + len(part)), to


def checksums(keys: np.ndarray, views: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return one checksum, uint64, per row over key, view and vector together.

    A multilinear hash of 32-bit words modulo 2^64 (Lemire & Kaser, "Strongly universal string hashing is fast",
    2014) with odd multipliers from SplitMix64 (Steele, Lea & Flood 2014). A change within one word is always
    detected; any other change is missed with a chance below 2^-32. Words of 64 bits would not do: changes of two top
    bits cancel out. The key is hashed too, so that a vector under another content's key is detected like a flipped
    bit. The constant keeps a row of zeros from matching.

    Args:
        keys: S32 (n,).
        views: int16 (n,).
        vectors: (n, d), contiguous, in the stored dtype, little-endian.
    """
    n, row_bytes = len(keys), vectors.shape[1] * vectors.itemsize
    tail = -row_bytes % 4
    raw = vectors.view(np.uint8).reshape(n, row_bytes) if n else np.empty((0, row_bytes), np.uint8)
    words = (np.pad(raw, ((0, 0), (0, tail))) if tail else raw).view("<u4")
    key_words = np.ascontiguousarray(keys, f"S{KEY_BYTES}").view("<u4").reshape(n, KEY_BYTES // 4)
    multipliers = _multipliers(key_words.shape[1] + 1 + words.shape[1])
    # einsum casts in small buffers; matmul would copy all words
    total = np.einsum("ij,j->i", words, multipliers[9:])
    total += np.einsum("ij,j->i", key_words, multipliers[:8])
    total += views.astype(np.uint64) * multipliers[8]
    return total + np.uint64(0x9E3779B97F4A7C15)


def intact(batch: pa.RecordBatch) -> np.ndarray:
    """Return which rows (sha256, view, vector, checksum) match their checksum, bool (n,)."""
    keys, views = keys_of(batch.column("sha256")), batch.column("view").to_numpy()
    return checksums(keys, views, vectors_of(batch.column("vector"))) == batch.column("checksum").to_numpy()


@functools.cache
def _multipliers(count: int) -> np.ndarray:
    """Return the first ``count`` outputs of SplitMix64 from seed 0, made odd."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (z ^ (z >> np.uint64(31))) | np.uint64(1)
