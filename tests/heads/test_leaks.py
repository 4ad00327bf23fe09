"""What the test split says changes the scores on it, and nothing else, whatever was asked for."""

import inspect
import json
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders import make_dataset, only
from heads import train as training
from heads.base import Head
from heads.comparison import compare as comparing
from heads.comparison.compare import compare
from heads.comparison.fit_cache import Results
from heads.comparison.space import Evaluation
from heads.evaluation.metrics import wilson
from heads.spec import HeadSpec
from heads.train import train

pytestmark = pytest.mark.usefixtures("few_resamples")
DATASET = make_dataset(n=240, noise=1.5)
TEST = DATASET.splits == "test"
GROUPS = np.array([f"group:{row // 2}" for row in range(len(DATASET))])
SEARCH = only("ncm", "logreg", "ridge", "knn", logreg=({"C": 0.01}, {"C": 1.0}), ridge=({"alpha": 100.0},))


def views(dataset):
    own = dataset.part("train")
    drawn = np.random.default_rng(0).normal(size=own.X.shape)
    return own.with_views((own.X + drawn).astype(np.float32), np.arange(len(own)))


def another(dataset):
    return replace(dataset, feature_set="set-2", fingerprint="e" * 64, X=dataset.X[:, :5])


# Each option away from its default, by its name; what it is given is made of the dataset that it goes with.
COMPARED = {
    "datasets": lambda data: {"datasets": [another(data), data]},
    "search": lambda data: {"search": replace(only("logreg"), class_weights=("balanced",))},
    "seeds": lambda data: {"evaluation": Evaluation(seeds=2, first_seed=3)},
    "first_seed": lambda data: {"evaluation": Evaluation(first_seed=3)},
    "folds": lambda data: {"evaluation": Evaluation(folds=3)},
    "fewshot": lambda data: {"evaluation": Evaluation(fewshot=(1, 5))},
    "prefer": lambda data: {"evaluation": Evaluation(prefer="simple")},
    "budget": lambda data: {"evaluation": Evaluation(budget=1e6)},
    "results": lambda data: {"results": Results()},
    "progress": lambda data: {"progress": lambda done, total: None},
    "augmented": lambda data: {"augmented": views(data)},
    "augmented and folds": lambda data: {"augmented": views(data), "evaluation": Evaluation(folds=3)},
    "groups": lambda data: {"datasets": replace(data, groups=GROUPS), "evaluation": Evaluation(folds=3)},
}
TRAINED = {
    "dataset": lambda data: {},
    "head": lambda data: {"spec": HeadSpec("knn")},
    "params": lambda data: {"spec": HeadSpec("logreg", {"C": 1.0})},
    "class_weight": lambda data: {"spec": HeadSpec("logreg", class_weight="balanced")},
    "seed": lambda data: {"seed": 5},
    "augmented": lambda data: {"augmented": views(data)},
}
ASKED = [
    *((f"compare {name}", lambda data, ask=ask: compare(**{"datasets": data, "search": SEARCH} | ask(data)))
      for name, ask in COMPARED.items()),
    *((f"train {name}", lambda data, ask=ask: train(**{"dataset": data, "spec": HeadSpec("logreg")} | ask(data)))
      for name, ask in TRAINED.items()),
]  # fmt: skip
OF_TEST = {"test", "test_ci", "metrics", "baseline"}
OF_BINS = {"ece_before", "ece_after", "before", "after"}
OF_ANSWERS = {"coverage", "accuracy", "accuracy_ci", "n"}


def test_every_option_is_asked_for():
    for function, asked, grouped, group in (
        (comparing.compare, COMPARED, "evaluation", Evaluation),
        (training.train, TRAINED, "spec", HeadSpec),
    ):
        alone = inspect.signature(function).parameters.keys() - {grouped}
        assert alone | {one.name for one in fields(group)} <= asked.keys()


def without_test(told):
    """What is told, without that which is of the test split, and without times."""
    told = json.loads(json.dumps(told))

    def stripped(value, within=""):
        if isinstance(value, list):
            return [stripped(one, within) for one in value]
        if not isinstance(value, dict):
            return value
        gone = {"fit_seconds"} | {"calibration": OF_BINS, "abstain": OF_ANSWERS, "": OF_TEST, "winner": OF_TEST}.get(
            within, set()
        )
        return {name: stripped(one, name) for name, one in value.items() if name not in gone}

    return stripped(told)


def winner_of(result):
    return getattr(result, "winner", result)


@pytest.fixture(scope="module")
def plain():
    """Each job's result on the data as they are, made once."""
    made = {}

    def result(name, job):
        if name not in made:
            made[name] = job(DATASET)
        return made[name]

    return result


@pytest.mark.parametrize(("name", "job"), ASKED, ids=[name for name, _ in ASKED])
@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels=st.integers(0, 2**32 - 1), features=st.booleans())
def test_another_test_split_changes_the_test_scores_and_nothing_else(plain, name, job, labels, features):
    draw = np.random.default_rng(labels)
    names, counts = np.unique(DATASET.y[DATASET.splits == "train"], return_counts=True)
    rare = draw.permutation(np.delete(names, counts.argmax()))[0]  # of train; test is made to have most of it
    y = np.where(TEST, draw.choice(names, len(DATASET), p=np.where(names == rare, 0.7, 0.1)), DATASET.y)
    X = np.where(TEST[:, None] & features, 50 * draw.normal(size=DATASET.X.shape), DATASET.X).astype(np.float32)
    other = replace(DATASET, y=y, X=X)
    before, after = plain(name, job), job(other)
    assert without_test(before.to_json()) == without_test(after.to_json())
    old, new = winner_of(before).head, winner_of(after).head
    assert all((old.arrays[array] == new.arrays[array]).all() for array in old.arrays)

    told, test = winner_of(after), other.part("test")
    assert told.test == np.mean(new.predict(test.X) == test.y) and told.test_ci == wilson(told.test, len(test))
    assert told.baseline == np.mean(test.y == names[counts.argmax()])


@pytest.mark.parametrize(("name", "job"), ASKED, ids=[name for name, _ in ASKED])
def test_the_winner_alone_sees_the_test_split(monkeypatch, name, job):
    test, seen = {row.tobytes() for row in DATASET.X[TEST]}, []
    scores = Head.scores

    def watched(self, X):
        if any(row.tobytes() in test for row in X[:, : DATASET.width]):
            seen.append(self)
        return scores(self, X)

    monkeypatch.setattr(Head, "scores", watched)
    result = job(DATASET)
    assert seen and all(head is winner_of(result).head for head in seen)
