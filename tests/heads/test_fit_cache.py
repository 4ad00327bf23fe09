"""Kept outcomes: what changes a score changes its key, and what changes none does not."""

import hashlib
import json
import shutil
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import make_dataset, only
from featurestore.storage.files import read_sealed
from heads import registry
from heads.comparison import compare as comparing
from heads.comparison.compare import compare
from heads.comparison.fit_cache import Outcome, Results, digest, key_of
from heads.comparison.space import Evaluation, Search

pytestmark = pytest.mark.usefixtures("few_resamples")
DATASET = make_dataset(n=120, noise=1.5)
SPLITS, ROWS = DATASET.splits, np.arange(len(DATASET))
SEARCH = only("ncm", "logreg", "dense", logreg=({"C": 0.1},), dense=({},))
QUICK = only("ncm", "dense", dense=({},))  # for what is drawn many times
NAMES = np.unique(DATASET.y)


class Watched(Results):
    """Counts what was known and what was not."""

    def __init__(self):
        super().__init__()
        self.known, self.unknown = set(), set()

    def get(self, key):
        found = super().get(key)
        if key not in self.known | self.unknown:
            (self.unknown if found is None else self.known).add(key)
        return found


@pytest.fixture(autouse=True, scope="module")
def _random_family():
    """A family whose fit depends on its seed, and takes no time."""

    def by_chance(problem, **params):
        coef = np.random.default_rng(problem.seed).normal(size=(problem.X.shape[1], problem.n_classes))
        return {"coef": coef, "intercept": np.zeros(problem.n_classes)}

    with pytest.MonkeyPatch.context() as patch:
        dense = replace(registry.FAMILIES["dense"], fit=by_chance, fit_many=None, head=registry.FAMILIES["ncm"].head)
        patch.setitem(registry.FAMILIES, "dense", dense)
        patch.setattr(comparing, "CURVE_SECONDS", -1)  # whose fits are kept too
        yield


def told(result):
    return [{name: value for name, value in row.items() if name != "fit_seconds"} for row in result.leaderboard]


def asked_twice(first, then):
    """How many outcomes of one comparison another takes; what it says must be what it says by itself."""
    results = Watched()
    compare(**first, results=results)
    results.known, results.unknown = set(), set()
    assert told(compare(**then, results=results)) == told(compare(**then))
    return len(results.known), len(results.unknown)


def job(data=DATASET, **options):
    """Arguments of ``compare``; those of its evaluation are given by name."""
    of_evaluation = {name: options.pop(name) for name in {one.name for one in fields(Evaluation)} & options.keys()}
    return {"datasets": data, "search": SEARCH, "evaluation": Evaluation(**of_evaluation)} | options


def quick(data=DATASET, **options):
    return job(data, search=QUICK, **options)


def moved(row, split):
    return replace(DATASET, splits=np.where(row == ROWS, split, SPLITS))


def relabelled(row, label):
    return replace(DATASET, y=np.where(row == ROWS, label, DATASET.y))


@settings(max_examples=15)
@given(row=st.sampled_from(ROWS.tolist()), label=st.sampled_from(NAMES.tolist()))
def test_a_label_counts_where_it_is_fitted_or_judges(row, label):
    same = SPLITS[row] == "test" or DATASET.y[row] == label
    assert asked_twice(quick(), quick(relabelled(row, label))) == ((2, 0) if same else (0, 2))


@settings(max_examples=15)
@given(row=st.sampled_from(ROWS.tolist()), split=st.sampled_from(["train", "val", "test"]))
def test_a_place_in_a_split_counts(row, split):
    assert asked_twice(quick(), quick(moved(row, split))) == ((2, 0) if split == SPLITS[row] else (0, 2))


@settings(max_examples=15)
@given(row=st.sampled_from(ROWS.tolist()), label=st.sampled_from(NAMES.tolist()))
def test_with_folds_labels_of_the_training_rows_count(row, label):
    """And those of validation for the winner alone, which is fitted to all training rows."""
    same = SPLITS[row] != "train" or DATASET.y[row] == label
    all_same = SPLITS[row] == "test" or DATASET.y[row] == label
    known = asked_twice(quick(folds=3), quick(relabelled(row, label), folds=3))
    assert known == ((7, 0) if all_same else (6, 1) if same else (0, 7))


@pytest.mark.parametrize(
    ("change", "known"),
    [
        ({}, 3),
        ({"first_seed": 7}, 2),  # of families that are the same with every seed
        ({"seeds": 2}, 3),
        ({"folds": 3}, 1),  # the winner's fit to all rows
        ({"search": replace(SEARCH, class_weights=("balanced",))}, 1),  # ncm takes none
        ({"search": Search({"logreg": ({"C": 0.2},)}, (None,))}, 0),
        ({"search": Search({"dense": ({"hidden": [8]},)}, (None,))}, 0),
        ({"search": Search({"svm": ({"C": 0.1},)}, (None,))}, 0),  # a value of C that logreg has
        ({"search": Search({"ridge": ({"alpha": 10.0},)}, (None,))}, 0),
        ({"datasets": replace(DATASET, fingerprint="0" * 64, X=DATASET.X[:, ::-1] * 2)}, 0),
        ({"datasets": replace(DATASET, keys=DATASET.keys[::-1], X=DATASET.X[::-1])}, 0),  # other images
        ({"datasets": replace(DATASET, uris=DATASET.uris[::-1])}, 3),
        ({"fewshot": (2,), "budget": 1e6}, 3),
    ],
    ids=[
        "nothing", "seed", "another seed", "folds", "class weight", "C", "hidden", "family of the same C", "family",
        "features", "images", "uris", "few-shot",
    ],
)  # fmt: skip
def test_what_else_decides_a_score(change, known):
    assert asked_twice(job(), job(**change))[0] == known


@pytest.mark.parametrize("groups", [ROWS // 2, ROWS // 5])
def test_with_folds_groups_count(groups):
    grouped = replace(DATASET, groups=np.array([f"group:{group}" for group in groups]))
    assert asked_twice(job(folds=3), job(grouped, folds=3)) == (1, 9)  # the winner's fit to all rows
    assert asked_twice(job(folds=3), job(folds=4)) == (1, 12)
    assert asked_twice(job(), job(grouped)) == (3, 0)


# -- what is in the folder ---------------------------------------------------------------------------------------------


def test_keys_and_digests_are_those_of_earlier_versions():
    """Or else what stores know already would be fitted again."""
    told = (
        '{"class_weight": null, "data": "d", "fold": -1, "head": "ncm", "params": {"C": 0.1}, "seed": 0, "version": 1}'
    )
    fit = {"head": "ncm", "params": {"C": 0.1}, "class_weight": None, "seed": 0, "fold": -1}
    assert key_of("d", **fit) == hashlib.sha256(told.encode()).hexdigest()
    texts, keys = np.array(["a", "é"]), np.array([b"\1" * 31 + b"\0", b"\2" * 32], "S32")
    data = [b"plain", "a\0é".encode(), b"01" * 31 + b"00\0" + b"02" * 32]
    framed = b"".join(len(one).to_bytes(8, "little") + one for one in data)
    assert digest("plain", texts, keys) == hashlib.sha256(framed).hexdigest()
    assert digest(texts[:0]) == hashlib.sha256(bytes(8)).hexdigest()


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 100])
def test_an_outcome_comes_back_as_it_was(tmp_path, rows):
    outcome = Outcome(np.arange(rows) % 3 == 0, 1.5, "a note")
    for results in (Results(), Results(tmp_path / "results")):
        assert results.get("ab" * 32) is None
        results.put("ab" * 32, outcome)
        same = results.get("ab" * 32)
        assert same.right.dtype == bool and same.right.tolist() == outcome.right.tolist()
        assert (same.seconds, same.note) == (1.5, "a note")
    file = tmp_path / "results" / "ab" / f"{'ab' * 32}.json"
    told = json.loads(file.read_text())
    bits = np.packbits(outcome.right).tobytes().hex()
    assert {name: told[name] for name in ("key", "rows", "right", "seconds", "note")} == {
        "key": "ab" * 32, "rows": rows, "right": bits, "seconds": 1.5, "note": "a note",
    }  # fmt: skip
    other = file.with_name(f"{'ab' * 31}00.json")
    shutil.copy(file, other)
    assert read_sealed(other)["key"] == "ab" * 32
    assert Results(tmp_path / "results").get("ab" * 31 + "00") is None  # what was copied is of another fit
