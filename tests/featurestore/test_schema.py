"""Arrow conversions keep every byte, and a checksum notices what is changed."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.dataset import hex_ids
from featurestore.errors import StoreCorrupt
from featurestore.journal import PLAN
from featurestore.schema import (
    CATALOG,
    KEY_BYTES,
    LABELS,
    LABELS_V1,
    SPEC_KEY,
    checksums,
    features_batch,
    features_schema,
    intact,
    key_array,
    keys_of,
    row_keys,
    spec_of,
    storable,
    vectors_of,
    widened,
)
from featurestore.spec import FeatureSpec, Preprocessing

SPEC = FeatureSpec("fake", "0" * 64, Preprocessing(32, "lite"), "top", "avg", 5)
DTYPES = ("float16", "float32")
# any bytes are a valid row: NaNs, infinities and negative zeros included
digests = st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES) | st.integers(0, KEY_BYTES).flatmap(
    lambda zeros: st.binary(min_size=KEY_BYTES - zeros, max_size=KEY_BYTES - zeros).map(lambda b: b + b"\0" * zeros)
)
rows = st.tuples(st.sampled_from(DTYPES), st.integers(1, 9)).flatmap(
    lambda kind: st.tuples(
        digests,
        st.integers(-(2**15), 2**15 - 1),
        st.binary(min_size=(size := np.dtype(kind[0]).itemsize * kind[1]), max_size=size).map(
            lambda raw: np.frombuffer(raw, kind[0])[None]
        ),
    )
)


def key(digest: bytes) -> np.ndarray:
    return np.frombuffer(digest, f"S{KEY_BYTES}")


def checksum(digest: bytes, view: int, vector: np.ndarray) -> int:
    return int(checksums(key(digest), np.array([view], np.int16), vector)[0])


def flipped(raw: bytes, bit: int) -> bytes:
    data = bytearray(raw)
    data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


@given(rows, st.data())
def test_any_single_bit_is_noticed(row: tuple[bytes, int, np.ndarray], data: st.DataObject) -> None:
    digest, view, vector = row
    intact = checksum(digest, view, vector)
    raw = vector.tobytes()
    bit = data.draw(st.integers(0, 8 * KEY_BYTES - 1))
    assert checksum(flipped(digest, bit), view, vector) != intact
    bit = data.draw(st.integers(0, 15))
    other_view = int(np.frombuffer(flipped(np.int16(view).tobytes(), bit), np.int16)[0])
    assert checksum(digest, other_view, vector) != intact
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    assert checksum(digest, view, np.frombuffer(flipped(raw, bit), vector.dtype)[None]) != intact


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_two_bits_are_noticed(dtype: str) -> None:
    """All pairs of a small row, two sign bits among them: words as wide as the modulus would let those pass."""
    vector = np.arange(1, 13, dtype=dtype)[None]
    raw = vector.tobytes()
    pairs = [(a, b) for a in range(8 * len(raw)) for b in range(a)]
    changed = np.frombuffer(b"".join(flipped(flipped(raw, a), b) for a, b in pairs), dtype).reshape(-1, 12)
    keys = np.repeat(key(bytes(range(KEY_BYTES))), len(pairs))
    views = np.zeros(len(pairs), np.int16)
    assert not (checksums(keys, views, changed) == checksum(bytes(range(KEY_BYTES)), 0, vector)).any()


@given(rows, st.data())
def test_swapped_vectors_are_noticed(row: tuple[bytes, int, np.ndarray], data: st.DataObject) -> None:
    digest, view, vector = row
    other_digest = data.draw(digests.filter(lambda other: other != digest))
    size = vector.nbytes
    other = data.draw(st.binary(min_size=size, max_size=size).filter(lambda raw: raw != vector.tobytes()))
    assert checksum(digest, view, np.frombuffer(other, vector.dtype)[None]) != checksum(digest, view, vector)
    assert checksum(other_digest, view, vector) != checksum(digest, view, vector)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, 3, 5, 7, 1280])
def test_zeros_do_not_match_zeros(dtype: str, width: int) -> None:
    """A zero-filled page must not look like an intact row of zeros."""
    assert checksum(b"\0" * KEY_BYTES, 0, np.zeros((1, width), dtype)) != 0


@given(rows, st.integers(2, 20))
def test_a_row_does_not_depend_on_its_batch(row: tuple[bytes, int, np.ndarray], n: int) -> None:
    digest, view, vector = row
    sums = checksums(np.repeat(key(digest), n), np.full(n, view, np.int16), np.repeat(vector, n, axis=0))
    assert sums.tolist() == [checksum(digest, view, vector)] * n


def test_checksum_is_pinned() -> None:
    """If this fails, every stored row would look damaged."""
    digest = bytes(range(KEY_BYTES))
    assert checksum(digest, 0, np.arange(5, dtype=np.float16)[None]) == 7848472477108629837
    assert checksum(digest, -3, np.arange(5, dtype=np.float32)[None]) == 17521349514066457860


@given(
    st.lists(digests, max_size=12, unique=True),
    st.sampled_from(DTYPES),
    st.integers(1, 9),
    st.integers(-5, 5),
    st.integers(0, 2**32 - 1),
)
def test_batch_round_trip(found: list[bytes], dtype: str, width: int, view: int, seed: int) -> None:
    schema = features_schema(replace(SPEC, dtype=dtype, width=width))
    keys = np.array(found, f"S{KEY_BYTES}")
    vectors = np.random.default_rng(seed).normal(size=(len(keys), width)).astype(np.float32)
    batch = features_batch(schema, keys, vectors, "run", view)
    assert batch.schema.equals(schema, check_metadata=True)
    assert batch.column("sha256").to_pylist() == found
    assert [k.hex() for k in found] == hex_ids(keys_of(batch.column("sha256"))).tolist()
    stored = vectors_of(batch.column("vector"))
    assert stored.dtype == dtype and np.array_equal(stored, vectors.astype(dtype))
    sums = checksums(keys_of(batch.column("sha256")), batch.column("view").to_numpy(), stored)
    assert np.array_equal(sums, batch.column("checksum").to_numpy())
    assert batch.column("view").to_pylist() == [view] * len(found)
    assert batch.column("run_id").to_pylist() == ["run"] * len(found)


@given(st.lists(digests, max_size=12), st.integers(0, 12), st.integers(0, 12))
def test_keys_survive_arrow(found: list[bytes], start: int, length: int) -> None:
    """Digests that end in zero bytes keep them; slices and chunks too."""
    array = key_array(np.array(found, f"S{KEY_BYTES}"))
    assert array.to_pylist() == found
    assert array.type == pa.binary(KEY_BYTES)
    part = keys_of(array.slice(start, length))
    assert key_array(part).to_pylist() == found[start : start + length]
    chunked = keys_of(pa.chunked_array([array.slice(start, length), array], array.type))
    assert key_array(chunked).to_pylist() == found[start : start + length] + found
    assert len(keys_of(pa.chunked_array([], array.type))) == 0


@given(st.lists(st.tuples(digests, st.integers(0, 2**15 - 1)), max_size=6))
def test_rows_sort_by_content_and_then_by_view(rows: list[tuple[bytes, int]]) -> None:
    columns = pa.array([d for d, _ in rows], pa.binary(KEY_BYTES)), pa.array([v for _, v in rows], pa.int16())
    keys = row_keys(*columns)
    assert keys.dtype == "S34"
    assert [k.ljust(34, b"\0") for k in keys.tolist()] == [d + v.to_bytes(2, "big") for d, v in rows]
    assert np.argsort(keys, kind="stable").tolist() == sorted(range(len(rows)), key=rows.__getitem__)
    chunked = [pa.chunked_array([column, column.slice(1)], column.type) for column in columns]
    assert row_keys(*chunked).tolist() == keys.tolist() + keys[1:].tolist()


def test_rows_that_are_not_what_their_checksum_says() -> None:
    batch = features_batch(features_schema(SPEC), np.array([b"a", b"b", b"c"], "S32"), np.ones((3, 5)), "r", 7)
    assert intact(batch).tolist() == [True] * 3 and intact(batch.slice(1, 0)).tolist() == []
    for name, values in {
        "sha256": key_array(np.array([b"a", b"x", b"c"], "S32")),
        "view": pa.array([7, 6, 7], pa.int16()),
        "checksum": pa.array([n ^ (i == 1) for i, n in enumerate(batch.column("checksum").to_pylist())], pa.uint64()),
        "vector": features_batch(
            batch.schema, np.array([b"a"] * 3, "S32"), [[1] * 5, [1] * 4 + [2], [1] * 5], "r"
        ).column("vector"),
        "run_id": pa.array(["r", "other", "r"]),  # has none
    }.items():
        field = batch.schema.get_field_index(name)
        changed = batch.set_column(field, batch.schema.field(name), values)
        assert intact(changed).tolist() == [True, name == "run_id", True]


def test_columns_without_a_buffer() -> None:
    assert keys_of(pa.array([], pa.binary(KEY_BYTES))).dtype == f"S{KEY_BYTES}"
    assert len(keys_of(pa.Array.from_buffers(pa.binary(KEY_BYTES), 0, [None, None]))) == 0


def test_vectors_of_slices() -> None:
    batch = features_batch(
        features_schema(SPEC), np.array([b"a", b"b", b"c"], "S32"), np.arange(15.0).reshape(3, 5), "r"
    )
    assert np.array_equal(vectors_of(batch.slice(1, 1).column("vector")), [[5, 6, 7, 8, 9]])


COLUMNS: dict[str, tuple[pa.Schema, str]] = {
    "catalog": (
        CATALOG,
        "uri: string not null; sha256: fixed_size_binary[32]; size: int64 not null; mtime_ns: int64 not null; "
        "width: int32; height: int32; format: string; status: string not null; error_type: string; error: string; "
        "run_id: string not null",
    ),
    "labels of format 1": (
        LABELS_V1,
        "uri: string not null; label: string; split: string; group: string; label_set: string not null; "
        "run_id: string not null",
    ),
    "labels": (
        LABELS,
        "uri: string not null; label: string; split: string; group: string; label_set: string not null; "
        "run_id: string not null; source: string; listed: bool",
    ),
    "plan": (
        PLAN,
        "uri: string not null; size: int64 not null; mtime_ns: int64 not null; offset: int64 not null; "
        "replaces: bool not null",
    ),
    "features": (
        features_schema(SPEC),
        "sha256: fixed_size_binary[32] not null; view: int16 not null; "
        "vector: fixed_size_list<item: halffloat>[5] not null; checksum: uint64 not null; run_id: string not null",
    ),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_the_columns_never_change(name: str) -> None:
    """Stores and journals of older versions have these: what differs counts as damaged."""
    schema, columns = COLUMNS[name]
    assert "; ".join(f"{f.name}: {f.type}{'' if f.nullable else ' not null'}" for f in schema) == columns


def test_schema_carries_the_spec() -> None:
    assert spec_of(features_schema(SPEC)) == SPEC
    for dtype in DTYPES:
        assert features_schema(replace(SPEC, dtype=dtype)).field("vector").type == pa.list_(
            pa.from_numpy_dtype(np.dtype(dtype)), SPEC.width
        )


@pytest.mark.parametrize("metadata", [None, {b"other": b"x"}, {SPEC_KEY: b"{}"}, {SPEC_KEY: b"\xff\xfe"}])
def test_schema_without_a_spec_is_corrupt(metadata: dict[bytes, bytes] | None) -> None:
    with pytest.raises(StoreCorrupt, match="feature spec"):
        spec_of(features_schema(SPEC).with_metadata(metadata))


@given(
    dtype=st.sampled_from(DTYPES),
    vectors=st.lists(st.lists(st.floats(width=32), min_size=3, max_size=3), min_size=1, max_size=4),
)
def test_storable_vectors_are_those_that_stay_finite(dtype: str, vectors: list[list[float]]) -> None:
    array = np.array(vectors, np.float32)
    largest = {"float16": 65504.0, "float32": float(np.finfo(np.float32).max)}[dtype]
    assert storable(array, dtype).tolist() == [all(-largest <= x <= largest for x in row) for row in array.tolist()]
    assert np.isfinite(array[storable(array, dtype)].astype(dtype)).all()


def test_the_largest_numbers_that_can_be_stored() -> None:
    X = np.array([[65504.0], [-65504.0], [65505.0], [1e38], [np.nan], [np.inf]], np.float32)
    assert storable(X, "float16").tolist() == [True, True, False, False, False, False]
    assert storable(X, "float32").tolist() == [True, True, True, True, False, False]


# -- float16 as float32 --------------------------------------------------------------------------------------------

EVERY = np.arange(2**16, dtype=np.uint16)


def as_float32(vectors: np.ndarray) -> np.ndarray:
    out = np.full(vectors.shape, np.nan, np.float32)
    for rows, wide in widened(vectors):
        out[rows] = wide
    return out


@contextmanager
def subnormals_taken_for_zero() -> Iterator[None]:
    """Set MXCSR.DAZ, as libraries compiled for speed do; it is at byte 28 of glibc's ``fenv_t`` on x86-64."""
    libm, before = ctypes.CDLL("libm.so.6"), ctypes.create_string_buffer(32)
    assert libm.fegetenv(before) == 0
    changed = ctypes.create_string_buffer(before.raw[:28] + bytes([before.raw[28] | 0x40]) + before.raw[29:], 32)
    assert libm.fesetenv(changed) == 0
    try:
        yield
    finally:
        libm.fesetenv(before)


@given(
    st.integers(1, 70_000),
    st.sampled_from([EVERY, EVERY[:0x7C00], EVERY[:0x8000], EVERY[0x8000:], EVERY[0x8000:0xFC00]]),
    st.sampled_from(DTYPES),
    st.integers(0, 2**32 - 1),
)
def test_every_vector_is_widened_as_by_numpy(width: int, values: np.ndarray, dtype: str, seed: int) -> None:
    """To the bit, in any order: subnormal numbers and negative zeros, with or without infinities and NaN of a sign."""
    order = np.random.default_rng(seed).permutation(values)
    vectors = np.resize(order, (-(-len(order) // width), width)).view(np.float16)
    stored = vectors.astype(dtype)
    assert np.array_equal(as_float32(stored).view(np.uint32), vectors.astype(np.float32).view(np.uint32))
    assert as_float32(stored[:0]).shape == (0, width)


@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="MXCSR is x86's")
def test_vectors_are_widened_where_subnormal_numbers_are_taken_for_zero() -> None:
    finite = EVERY[np.isfinite(EVERY.view(np.float16))].view(np.float16).reshape(-1, 8)
    expected = finite.astype(np.float32).view(np.uint32)
    with subnormals_taken_for_zero():
        assert not (np.array([1e-40], np.float32) * np.float32(1e30)).any()  # they are
        wide = as_float32(finite)
    assert np.array_equal(wide.view(np.uint32), expected)
