"""A head comes back from disk as it was, or not at all."""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import FormatError, HeadError, PenultError, SpecMismatch, StoreCorrupt, StoreNotFound
from featurestore.storage.files import read_sealed, write_sealed
from heads import artifact, registry
from heads.spec import HeadSpec

FAST = [name for name in registry.FAMILIES if name != "dense"]
HEADS = Path(__file__).parents[1] / "golden" / "heads-v1"
META = {"feature_set": "set", "fingerprint": "f" * 64, "metrics": {"top1": 0.5}}


def fitted(name="logreg", labels=("a", "b", "c"), d=4, seed=0):
    rng = np.random.default_rng(seed)
    y = np.array(labels)[np.arange(20 * len(labels)) % len(labels)]
    X = rng.normal(size=(len(y), d)).astype(np.float32)
    return registry.fit(HeadSpec(name), X, y, validation=(X, y)), X


@settings(max_examples=25)
@given(
    st.sampled_from(FAST),
    st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), min_size=2, max_size=5, unique=True),
    st.integers(0, 1000),
)
def test_round_trip(tmp_path_factory, name, labels, seed):
    folder = tmp_path_factory.mktemp("head")
    head, X = fitted(name, labels, seed=seed)
    artifact.save(head, folder, META)
    same, meta = artifact.load(folder, fingerprint="f" * 64)
    assert meta == META
    assert (same.family, same.params) == (head.family, head.params)
    assert same.classes.tolist() == sorted(labels) == head.classes.tolist()
    assert same.arrays.keys() == head.arrays.keys()
    for key, array in head.arrays.items():
        assert same.arrays[key].dtype == array.dtype and (same.arrays[key] == array).all()
    assert (same.probabilities(X) == head.probabilities(X)).all()
    assert sorted(path.name for path in folder.iterdir()) == ["head.json", "head.npz"]


@pytest.fixture
def saved(tmp_path):
    head, _ = fitted()
    artifact.save(head, tmp_path, META)
    return tmp_path


def edit(folder, **changes):
    """The description changed by someone who also corrects the seal."""
    write_sealed(folder / "head.json", read_sealed(folder / "head.json") | changes)


def replace_arrays(folder, **changes):
    """Arrays changed by someone who also corrects the digest."""
    with np.load(folder / "head.npz") as old:
        arrays = dict(old) | changes
    np.savez(folder / "head.npz", **arrays)
    edit(folder, sha256=hashlib.sha256((folder / "head.npz").read_bytes()).hexdigest())


def test_missing(tmp_path, saved):
    with pytest.raises(StoreNotFound, match="no head in"):
        artifact.load(tmp_path / "nothing")
    (saved / "head.npz").unlink()
    with pytest.raises(StoreCorrupt, match="No such file"):
        artifact.load(saved)


@pytest.mark.parametrize("position", [0.1, 0.5, 0.9])
def test_a_flipped_bit(saved, position):
    data = bytearray((saved / "head.npz").read_bytes())
    data[int(position * len(data))] ^= 1
    (saved / "head.npz").write_bytes(data)
    with pytest.raises(StoreCorrupt, match="Expected: sha256"):
        artifact.load(saved)


def test_other_features(saved):
    with pytest.raises(SpecMismatch, match=f"Expected: fingerprint {'f' * 64}. Got: {'0' * 64}"):
        artifact.load(saved, fingerprint="0" * 64)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"format_version": 2}, FormatError, "up to 1. Got: 2"),
        ({"format_version": "x"}, StoreCorrupt, "description of a head"),
        ({"format_version": 0}, StoreCorrupt, "with its format_version. Got: 0"),
        ({"format_version": True}, StoreCorrupt, "with its format_version. Got: True"),
        ({"format_version": 1.0}, StoreCorrupt, "with its format_version"),
        ({"params": []}, StoreCorrupt, "with its params"),
        ({"sha256": None}, StoreCorrupt, "with its sha256"),
        ({"meta": None}, StoreCorrupt, "with its meta"),
        ({"meta": {"feature_set": "../up"}}, StoreCorrupt, "with its meta"),
        ({"classes": ["a", "b", 3]}, StoreCorrupt, "with its classes"),
        ({"classes": ["a"]}, StoreCorrupt, "with its classes"),
        ({"classes": {}}, StoreCorrupt, "with its classes"),
        ({"arrays": []}, StoreCorrupt, "with its arrays"),
        ({"family": "tree"}, StoreCorrupt, "Got: 'tree'"),
        ({"family": "dense", "params": {"hidden": [3]}}, StoreCorrupt, "a head that can predict"),
        ({"family": ["ncm"]}, StoreCorrupt, "with its family"),
        ({"arrays": {}}, StoreCorrupt, "head.npz: Expected: at most"),
        ({"arrays": {"coef": {"dtype": "object", "shape": [1]}}}, StoreCorrupt, "with its arrays"),
        ({"arrays": {"coef": {"dtype": "float32", "shape": [10**10]}}}, StoreCorrupt, "with its arrays"),
        ({"classes": ["b", "a", "c"]}, StoreCorrupt, "with its classes"),
        ({"classes": ["a", "a", "b"]}, StoreCorrupt, "with its classes"),
        ({"classes": [*map(str, range(9999)), "x" * 99999]}, StoreCorrupt, "with its classes"),
        ({"classes": ["a", "b"]}, StoreCorrupt, r"Expected: scores of shape \(1, 2\). Got: \(1, 3\)"),
    ],
)
def test_a_description_that_does_not_fit(saved, changes, error, message):
    edit(saved, **changes)
    with pytest.raises(error, match=message):
        artifact.load(saved)


@pytest.mark.parametrize("limit", ["MAX_BYTES", "MAX_NAMES_BYTES"])
def test_a_head_may_be_as_large_as_the_limit_and_no_larger(tmp_path, monkeypatch, limit):
    head, X = fitted(labels=("a", "bb", "ccc"))
    sizes = {"MAX_BYTES": sum(array.nbytes for array in head.arrays.values()), "MAX_NAMES_BYTES": 3 * 3 * 4}
    artifact.save(head, tmp_path / "any", META)
    monkeypatch.setattr(artifact, limit, sizes[limit])
    artifact.save(head, tmp_path / "just", META)
    for folder in ("any", "just"):
        same, _ = artifact.load(tmp_path / folder)
        assert (same.predict(X) == head.predict(X)).all()
    monkeypatch.setattr(artifact, limit, sizes[limit] - 1)
    with pytest.raises(HeadError, match=r"too large to keep: Expected: .*; train another family, or on fewer"):
        artifact.save(head, tmp_path / "over", META)
    assert not (tmp_path / "over").exists()
    with pytest.raises(StoreCorrupt, match=f"with its {'arrays' if limit == 'MAX_BYTES' else 'classes'}"):
        artifact.load(tmp_path / "any")


@pytest.mark.parametrize(
    "array",
    [
        None, 3, [], {}, {"dtype": "float32"}, {"shape": [1]}, {"dtype": "float32", "shape": 1},
        {"dtype": "float32", "shape": [1.0]}, {"dtype": "float32", "shape": [True]},
        {"dtype": "float32", "shape": [-1]},
        {"dtype": "float128", "shape": [1]}, {"dtype": "<f4", "shape": [1]}, {"dtype": "xfloat32", "shape": [1]},
        {"dtype": "float32x", "shape": [1]}, {"dtype": 32, "shape": [1]}, {"dtype": "bool", "shape": [1]},
        {"dtype": "float32", "shape": [0, -1]},
    ],
)  # fmt: skip
def test_an_array_that_is_not_described(saved, array):
    edit(saved, arrays=read_sealed(saved / "head.json")["arrays"] | {"coef": array})
    with pytest.raises(StoreCorrupt, match="with its arrays"):
        artifact.load(saved)


def test_the_bytes_of_an_array_as_described():
    for dtype in ("float16", "float32", "float64", "int8", "int64", "uint8", "uint32"):
        for shape in ((), (3,), (2, 0), (5, 7)):
            (described,) = artifact._layout({"x": np.zeros(shape, dtype)}).values()
            assert described == {"dtype": dtype, "shape": list(shape)}
            assert artifact._size(described) == np.zeros(shape, dtype).nbytes


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_none(saved, temperature):
    for name in ("logreg", "knn"):  # one that divides by it, and one that votes
        artifact.save(fitted(name)[0], saved, META)
        replace_arrays(saved, temperature=np.float64(temperature))
        with pytest.raises(StoreCorrupt, match=r"a head that can predict\. Got: probabilities that are no numbers"):
            artifact.load(saved)


@pytest.mark.parametrize("machines", [2, 4])
def test_machines_of_other_pairs_of_classes(tmp_path, machines):
    """Three classes are three pairs: numbers of more or fewer machines are of another head."""
    artifact.save(fitted("rbf-svm")[0], tmp_path, META)
    replace_arrays(tmp_path, intercept=np.zeros(machines))
    layout = read_sealed(tmp_path / "head.json")["arrays"]
    edit(tmp_path, arrays=layout | {"intercept": {"dtype": "float64", "shape": [machines]}})
    with pytest.raises(StoreCorrupt, match="a head that can predict"):
        artifact.load(tmp_path)


def test_a_changed_description(saved):
    path = saved / "head.json"
    path.write_text(path.read_text().replace('"a"', '"A"'))
    with pytest.raises(StoreCorrupt, match="its seal does not match"):
        artifact.load(saved)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=5), inside, max_size=4),
    max_leaves=6,
)  # fmt: skip


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


@pytest.fixture(scope="module")
def every_family(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    for name in registry.FAMILIES:
        artifact.save(artifact.load(HEADS / name)[0], folder / name, META)
    return folder


@settings(max_examples=100)
@given(data=st.data(), name=st.sampled_from(list(registry.FAMILIES)))
def test_any_other_description(every_family, data, name):
    """Whatever a description says, there is a head that predicts, or one of our errors; never anything else."""
    folder = every_family / name
    original = (folder / "head.json").read_bytes()
    told = read_sealed(folder / "head.json")
    place = data.draw(st.sampled_from([p for p in places(told) if p]))
    inner = told
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = data.draw(JSON)
    write_sealed(folder / "head.json", told)
    try:
        head, _ = artifact.load(folder)
        assert np.isfinite(head.probabilities(np.zeros((2, 6), np.float32))).all()
    except PenultError as error:
        assert 0 < len(str(error)) < 1000
    finally:
        (folder / "head.json").write_bytes(original)


@settings(max_examples=100)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), name=st.sampled_from(list(registry.FAMILIES)))
def test_any_flipped_bit_of_a_description(every_family, where, bit, name):
    path = every_family / name / "head.json"
    original = path.read_bytes()
    data = bytearray(original)
    data[int(where * len(data))] ^= 1 << bit
    path.write_bytes(data)
    try:
        told = json.loads(original)
        head, meta = artifact.load(path.parent)
        assert (head.params, head.classes.tolist(), meta) == (told["params"], told["classes"], told["meta"])
    except PenultError:
        pass
    finally:
        path.write_bytes(original)


def test_a_description_that_is_cut(saved):
    path = saved / "head.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(StoreCorrupt):
        artifact.load(saved)
    path.write_text("{}")
    with pytest.raises(StoreCorrupt, match="Expected: the description of a head"):
        artifact.load(saved)


def test_other_shapes(saved):
    replace_arrays(saved, coef=np.zeros((4, 2)))
    with pytest.raises(StoreCorrupt, match="Expected: arrays"):
        artifact.load(saved)


def test_numbers_that_are_not_finite(saved, tmp_path):
    replace_arrays(saved, coef=np.full((4, 3), np.nan, np.float32))
    with pytest.raises(HeadError, match="finite numbers in coef"):
        artifact.load(saved)
    head, _ = fitted()
    head.arrays["coef"][0, 0] = np.inf
    with pytest.raises(HeadError, match="finite numbers in coef"):
        artifact.save(head, tmp_path / "new", META)
    assert not (tmp_path / "new").exists()


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_a_pickle_is_never_opened(saved):
    np.savez(saved / "head.npz", coef=np.array([Bomb()], dtype=object))
    edit(saved, sha256=hashlib.sha256((saved / "head.npz").read_bytes()).hexdigest())
    with pytest.raises(StoreCorrupt, match="plain numpy arrays"):
        artifact.load(saved)
    (saved / "head.npz").write_bytes(pickle.dumps(Bomb()))
    edit(saved, sha256=hashlib.sha256((saved / "head.npz").read_bytes()).hexdigest())
    with pytest.raises(StoreCorrupt, match="plain numpy arrays"):
        artifact.load(saved)


def test_a_save_that_fails_leaves_no_head(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(artifact, "write_sealed", full)
    with pytest.raises(OSError, match="disk full"):
        artifact.save(fitted()[0], tmp_path, META)
    with pytest.raises(StoreNotFound):
        artifact.load(tmp_path)
