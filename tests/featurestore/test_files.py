"""Small files: written whole, sealed, and read without trusting them."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import errors
from featurestore.errors import ImageError, PenultError, StoreCorrupt, StoreError, UsageError, trouble
from featurestore.limits import MAX_SEED, check_amount, check_count, check_seed
from featurestore.storage.files import (
    is_plain_name,
    listed,
    read_bytes,
    read_json,
    read_sealed,
    replacing,
    sealed,
    sha256_of,
    size_of,
    write_json,
    write_sealed,
    write_text,
)
from featurestore.storage.npz import OVERHEAD, read_npz, write_npz
from hostile.artifacts import ABSENT, ODD_ARRAYS, ODD_FILES

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


@settings(max_examples=50)
@given(value=OBJECTS)
def test_a_sealed_object_comes_back(path: Path, value: dict[str, object]) -> None:
    write_sealed(path, value)
    assert read_sealed(path, required=True) == value
    assert list(json.loads(path.read_text())) == [*value, "seal"]


@settings(max_examples=100)
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
    assert [is_plain_name(name) for name in ("x" * 200, "é" * 100, "é" * 101, "\ud800")] == [True, True, False, True]


RIGHT = "give this user the right to, or name another folder"
ADVICE = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EFBIG: "let files be larger there",
    errno.EROFS: "make it writable, or name another folder",
    errno.EACCES: RIGHT,
    errno.EPERM: RIGHT,
    errno.EIO: "look after that disk",
    errno.ENOTDIR: "look after that disk",
}


@pytest.mark.parametrize("number", ADVICE)
def test_what_the_system_refuses_is_said_with_what_to_do(number: int) -> None:
    said = f"{os.strerror(number)}: {ADVICE[number]}, then run the same command again; what was finished is kept."
    assert trouble(OSError(number, "x", "/own"), "/other") == f"/own: {said}"
    assert trouble(OSError(number, "x"), Path("/other")) == f"/other: {said}"
    for text in (f"LanceError(IO): it failed (os error {number}), /src/x.rs:12", f"[errno {number}] it failed"):
        assert trouble(OSError(text), "/other") == f"/other: {said}"  # Lance's and Arrow's
    assert trouble(OSError("it failed"), "/x").startswith(f"/x: {os.strerror(errno.EIO)}: look after that disk")


def test_an_empty_folder_none_and_one_that_has_just_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "bca":
        (tmp_path / name).touch()
    assert [path.name for path in listed(tmp_path)] == ["a", "b", "c"]
    assert listed(tmp_path / "nothing") == listed(tmp_path / "a") == []

    def refuse(number: int) -> None:
        def iterdir(path: Path) -> list[Path]:
            raise OSError(number, "x", str(path))

        monkeypatch.setattr(Path, "iterdir", iterdir)

    refuse(errno.ENOENT)
    assert listed(tmp_path) == []
    refuse(errno.EACCES)
    with pytest.raises(StoreError, match=RIGHT):
        listed(tmp_path)


def test_a_file_that_may_not_be_read_is_not_damaged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user gets the right to read it; `penult doctor` would put it aside."""
    write_json(path, {})

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "x")

    monkeypatch.setattr(os, "open", refuse)
    for read in (read_json, read_sealed, sha256_of, lambda path: read_npz(path, 9), lambda path: read_bytes(path, 9)):
        with pytest.raises(StoreError, match=r"x\.json may not be read: give this user the right to\.$") as caught:
            read(path)
        assert not isinstance(caught.value, StoreCorrupt)


def test_a_file_of_just_the_limit_is_read(path: Path) -> None:
    write_json(path, "é" * 30, limit=62)  # bytes, not characters
    assert path.stat().st_size == 62 and len(read_bytes(path, 62)) == 62 and read_json(path, 62) == "é" * 30
    with pytest.raises(StoreError, match="at most 61 bytes of JSON to write"):
        write_json(path, "é" * 30, limit=61)
    with pytest.raises(StoreCorrupt, match=r"at most 61 bytes in .* Got: 62;"):
        read_bytes(path, 61)


def test_the_sha256_of_a_file_and_of_a_seal(path: Path) -> None:
    write_text(path, "abc")  # FIPS 180-2, appendix B.1
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    # by hand: printf '{"a":[1,2],"é":null}' | sha256sum
    seal = "7a0c7dcb296b6c53f68790beba4795b37f135c13f30f79ea379fd6a0e38c6639"
    assert sealed({"é": None, "a": (1, 2)}) == {"é": None, "a": [1, 2], "seal": seal}
    for text in ('{"a": 1, "seal": null}', f'{{"a": [1, 2], "é": 1, "seal": "{seal}"}}'):
        write_text(path, text)
        with pytest.raises(StoreCorrupt, match="seal does not match"):
            read_sealed(path)


# --- durable: flushed before it takes its place, the folder after


@pytest.mark.parametrize("refused", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_file_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    path = tmp_path / "x.json"
    write_json(path, 1)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "x")

    with monkeypatch.context() as patch, pytest.raises(StoreError, match=r"make room there"):
        patch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[refused], refuse)
        write_json(path, 2)
    assert read_json(path) == 1 and [one.name for one in tmp_path.iterdir()] == ["x.json"]
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.touch()
        raise KeyError
    assert read_json(path) == 1 and [one.name for one in tmp_path.iterdir()] == ["x.json"]


def test_a_file_is_flushed_before_it_takes_its_place_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, did = tmp_path / "x.json", []
    flush, close, replace, flushed = os.fsync, os.close, Path.replace, []

    def fsync(descriptor: int) -> None:
        did.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        flushed.append(descriptor)
        flush(descriptor)

    def closing(descriptor: int) -> None:
        if descriptor in flushed:
            flushed.remove(descriptor)
        close(descriptor)

    def replacing(self: Path, to: Path) -> Path:
        did.append(f"{self} -> {to}")
        return replace(self, to)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "close", closing)
        patch.setattr(Path, "replace", replacing)
        write_json(path, 1)
    assert did == [temporary := did[0], f"{temporary} -> {path}", str(tmp_path)]
    assert Path(temporary).name.startswith(".x.json.") and temporary.endswith(".tmp")
    assert not flushed  # all closed


# --- arrays


ARRAYS = {
    "coef": np.arange(6, dtype=np.float32).reshape(2, 3),
    "turned": np.asfortranarray(np.arange(6, dtype="<i2").reshape(2, 3)),
    "classes": np.array(["a", "éé"]),
    "number": np.float64(1.5),
    "yes": np.array([True, False]),
    "count": np.array([2**63], np.uint64),
    "nothing": np.zeros((0, 4), np.float16),
}


def test_arrays_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    sha256 = write_npz(path, ARRAYS)
    assert sha256 == sha256_of(path) and list(tmp_path.iterdir()) == [path]
    size = path.stat().st_size
    assert size <= sum(array.nbytes for array in ARRAYS.values()) + OVERHEAD * (len(ARRAYS) + 1)
    for read in (read_npz(path, size, sha256), read_npz(path, size)):
        assert list(read) == list(ARRAYS)
        for name, array in ARRAYS.items():
            assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
            assert np.array_equal(read[name], array) and not read[name].flags.writeable
    with pytest.raises(StoreCorrupt, match=rf"a\.npz: Expected: at most {size - 1:,} bytes\. Got: {size:,};"):
        read_npz(path, size - 1)
    with pytest.raises(StoreCorrupt, match=rf"Expected: sha256 {'0' * 64}\. Got: {sha256}"):
        read_npz(path, size, "0" * 64)


NOT_HERE = ("NaN", "another shape", "another dtype", "text", "a scale of 0", "a temperature of 0", "one array less")
NOT_HERE += ("a bomb",)  # takes seconds to make
SAYS = {
    "compressed": "a compressed array",
    "one array twice": "two arrays of one name",
    "a name that leads out": "no plain name",
    "a size that is not true": "larger than the file",
    "another version": "an array of version",
    "an absurd shape": r"bytes that are no float32 of shape \(1000000000000,\)",
    "dates": "bytes that are no datetime64",
    "a structure": "bytes that are no",
    "pickled objects": "bytes that are no object",
}


@pytest.mark.parametrize("what", [name for name in ODD_ARRAYS if name not in NOT_HERE])
def test_anything_but_plain_arrays_is_refused(tmp_path: Path, what: str) -> None:
    (tmp_path / "outside").mkdir()
    members = []
    for name in ("coef", "scale"):
        np.save(buffer := io.BytesIO(), np.random.default_rng(0).normal(size=(8, 3)))  # hardly to be compressed
        members.append((f"{name}.npy", buffer.getvalue()))
    path = tmp_path / "a.npz"
    path.write_bytes(ODD_ARRAYS[what](members, tmp_path))
    with pytest.raises(StoreCorrupt, match=rf"a\.npz: Expected: plain numpy arrays\. Got: .*{SAYS.get(what, '')}"):
        read_npz(path, 2**24)
    assert not list((tmp_path / "outside").iterdir())


def test_two_sizes_of_one_array(tmp_path: Path) -> None:
    """Not packed, says the directory, but smaller in the file than what comes out of it."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", b"x" * 500)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    at = data.index(b"PK\x01\x02") + 20
    data[at : at + 4] = (499).to_bytes(4, "little")
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(StoreCorrupt, match="a compressed array"):
        read_npz(tmp_path / "a.npz", 9999)


def test_a_longer_header_is_of_the_second_version(tmp_path: Path) -> None:
    """NEP 1: a header of more than 65,535 bytes has its length in four; names in UTF-8 make the third version."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }".ljust(70) + b"\n"
    for version, length, good in (((1, 0), 2, True), ((2, 0), 4, True), ((3, 0), 4, False)):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            data = np.array([1, 2], "<f4").tobytes()
            archive.writestr(
                "x.npy", b"\x93NUMPY" + bytes(version) + len(header).to_bytes(length, "little") + header + data
            )
        if good:
            assert read_npz(tmp_path / "a.npz", 9999)["x"].tolist() == [1, 2]
        else:
            with pytest.raises(StoreCorrupt, match=r"an array of version \(3, 0\)"):
                read_npz(tmp_path / "a.npz", 9999)


# --- numbers that users give, and errors


def test_whole_numbers_within_limits() -> None:
    for good in (1, 5000, np.int64(3)):
        check_count("--n", good, 1, 5000)
    for wrong in (0, 5001, -1, True, 1.0, "3", None):
        with pytest.raises(UsageError, match=rf"^Expected: --n, a whole number from 1 to 5,000\. Got: {wrong}\.$"):
            check_count("--n", wrong, 1, 5000)
    for seed in (0, MAX_SEED):
        check_seed("--seed", seed)
    for seed in (-1, 2**63, True):
        with pytest.raises(UsageError, match=r"--seed, a whole number from 0 to 9,223,372,036,854,775,807\."):
            check_seed("--seed", seed)


def test_amounts_are_finite_and_large_enough() -> None:
    for value, least in ((0, 0), (0.5, 0), (10.0, 10), (1e300, 0)):
        check_amount("--age", value, least)
    check_amount("--age", 0)
    for value, least in ((-0.1, 0), (9.9, 10), (math.inf, 0), (math.nan, 0), (-math.inf, 0)):
        with pytest.raises(UsageError, match=rf"^Expected: --age, a number of at least {least}\. Got: {value}\.$"):
            check_amount("--age", value, least)
    with pytest.raises(UsageError, match="at least 0"):
        check_amount("--age", -0.1)


CODES = {"UsageError": 2, "StoreLocked": 75, "TooManyFailures": 3, "TooManyRemoved": 3, "Blocked": 4}


def test_exit_codes() -> None:
    """As the README and the table in ``errors`` tell them: scripts depend on these."""
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, PenultError)]
    plain = [one for one in classes if one is not errors.Interrupted]
    assert {one.__name__: one.exit_code for one in plain} == {one.__name__: CODES.get(one.__name__, 1) for one in plain}
    assert [errors.Interrupted(number).exit_code for number in (2, 15)] == [130, 143]


def test_a_workers_error_reaches_the_driver_whole() -> None:
    """Beam pickles it."""
    back = pickle.loads(pickle.dumps(ImageError("truncated", "It ends too early.")))
    assert (type(back), back.error_type, str(back)) == (ImageError, "truncated", "It ends too early.")


def test_a_damaged_store_is_told_what_to_do_once() -> None:
    doctor = "`penult doctor` brings back what can be had."
    for said, whole in {
        "Expected: a. Got: b.": f"Expected: a. Got: b; {doctor}",
        "Expected: a. Got: b": f"Expected: a. Got: b; {doctor}",
        f"Expected: a; {doctor}": f"Expected: a; {doctor}",
        "Expected: JSON in /removed/a. Got: b": f"Expected: JSON in /removed/a. Got: b; {doctor}",
        "Expected: a. Got: a link: remove the link.": "Expected: a. Got: a link: remove the link.",
    }.items():
        assert str(StoreCorrupt(said)) == whole
