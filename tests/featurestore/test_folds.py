"""Folds of a store's dataset: each row by its content, or by its group where it has one."""

from pathlib import Path

import numpy as np
import pytest

from builders import Picture, commit, key
from featurestore.dataset import Dataset
from featurestore.splits import FOLDS, place
from featurestore.store import FeatureStore

COUNT, FOLDS_ASKED = 60, 4
CONTENTS = [b"%d" % number for number in range(COUNT)]


def dataset(folder: Path, groups: dict[int, str]) -> Dataset:
    """Sixty images, some of them in groups."""
    store = FeatureStore.create(folder)
    rows = [Picture(str(i), content, "abc"[i % 3], group=groups.get(i)) for i, content in enumerate(CONTENTS)]
    commit(store, "run", rows)
    return store.dataset()


def by_number(data: Dataset, values: np.ndarray) -> list:
    """Values of a dataset's rows in the order of the images."""
    at = {uri: row for row, uri in enumerate(data.uris.tolist())}
    return [values[at[str(number)]].item() for number in range(COUNT)]


@pytest.mark.parametrize(
    "groups",
    [
        {},
        {7: "g"},
        {7: "g", 8: "g", 40: "g", 41: "", 42: ""},
        {number: f"patient {number // 5}" for number in range(0, COUNT, 2)},
        {number: key(CONTENTS[number]).hex() for number in range(5)},  # a group that is called like a content
        {number: f"patient {number // 5}" for number in range(COUNT)},
    ],
    ids=["none", "one row", "some rows", "half", "names of contents", "all"],
)
def test_each_row_has_the_fold_of_its_group_or_of_its_content(tmp_path: Path, groups: dict[int, str]) -> None:
    data, plain = dataset(tmp_path / "grouped", groups), dataset(tmp_path / "plain", {})
    names = [f"group:{groups[i]}" if i in groups else key(CONTENTS[i]).hex() for i in range(COUNT)]
    expected = [int(place(name.encode(), FOLDS) * FOLDS_ASKED) for name in names]
    folds, others = (by_number(one, one.folds(FOLDS_ASKED)) for one in (data, plain))
    assert folds == expected and set(others) == set(range(FOLDS_ASKED))
    alone = [number for number in range(COUNT) if number not in groups]
    splits, other_splits = by_number(data, data.splits), by_number(plain, plain.splits)
    assert [folds[number] for number in alone] == [others[number] for number in alone]
    assert [splits[number] for number in alone] == [other_splits[number] for number in alone]
    for group in set(groups.values()):
        members = [number for number in groups if groups[number] == group]
        assert len({(folds[number], splits[number]) for number in members}) == 1
