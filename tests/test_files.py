"""Small files: written whole, sealed, and read without trusting them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faults.hostile import ABSENT, ODD_FILES
from featurestore.errors import StoreCorrupt, StoreError
from featurestore.files import is_plain_name, read_json, read_sealed, sha256_of, size_of, write_json, write_sealed

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXT.filter(lambda key: key != "seal"), JSON, max_size=4)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files") / "x.json"


@settings(max_examples=50, deadline=None)
@given(value=OBJECTS)
def test_a_sealed_object_comes_back(path: Path, value: dict[str, object]) -> None:
    write_sealed(path, value)
    assert read_sealed(path, required=True) == value
    assert list(json.loads(path.read_text())) == [*value, "seal"]


@settings(max_examples=100, deadline=None)
@given(value=OBJECTS, where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed(path: Path, value: dict[str, object], where: float, bit: int) -> None:
    write_sealed(path, value)
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    path.write_bytes(data)
    try:
        assert read_sealed(path, required=True) == value  # white space
    except StoreCorrupt as error:
        assert str(path) in str(error)


def test_an_object_without_a_seal(path: Path) -> None:
    write_json(path, {"a": 1})
    assert read_sealed(path) == {"a": 1}
    with pytest.raises(StoreCorrupt, match="a seal"):
        read_sealed(path, required=True)


def test_tuples_and_numbers_as_keys_are_sealed_as_they_are_read(path: Path) -> None:
    write_sealed(path, {10: (1, 2), 9: 1.5})  # type: ignore[dict-item]
    assert read_sealed(path, required=True) == {"10": [1, 2], "9": 1.5}


@pytest.mark.parametrize("what", [name for name in ODD_FILES if name not in ("many values", "a number", "no keys")])
def test_anything_else_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x.json"
    write_sealed(path, {"a": 1})
    ODD_FILES[what](path)
    with pytest.raises(StoreCorrupt, match=r"x\.json"):
        read_sealed(path)
    if what in ABSENT or what.startswith(("a pipe", "a socket", "a folder", "a device")):
        assert size_of(path) is None
        with pytest.raises(StoreCorrupt, match=r"x\.json"):
            sha256_of(path)


def test_what_could_not_be_read_is_not_written(path: Path) -> None:
    write_json(path, ["a" * 100])
    with pytest.raises(StoreError, match=r"at most 64 bytes of JSON to write\. Got: 107"):
        write_json(path, ["b" * 100], limit=64)
    assert read_json(path) == ["a" * 100]
    with pytest.raises(StoreCorrupt, match="at most 64 bytes in"):
        read_json(path, limit=64)
    with pytest.raises(ValueError, match="Out of range float"):
        write_sealed(path, {"a": math.nan})


def test_plain_names() -> None:
    assert all(map(is_plain_name, ("a", "a.lance", "...", "-x", "é")))
    assert not any(map(is_plain_name, ("", ".", "..", "../a", "a/b", "/a", "a\\b", "a\0", "x" * 201, None, 1)))
