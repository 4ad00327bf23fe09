"""A family of heads from outside the packages, registered and used as the others are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import CountingEngine, write_picture
from featurestore.errors import HeadError, UsageError
from heads import artifact, registry
from heads.base import Head, Problem, check_param
from heads.families.base import Family
from heads.spec import HeadSpec
from pipelines import commands, keras_head
from pipelines.embedding.embed import embed


@dataclass(frozen=True)
class PriorHead(Head):
    """The same scores for every row: the logarithms of the classes' shares, smoothed."""

    def _scores(self, X: np.ndarray) -> np.ndarray:
        return np.tile(self.arrays["log_shares"], (len(X), 1))


def fit_prior(problem: Problem, *, smoothing: float) -> dict[str, np.ndarray]:
    counts = np.bincount(problem.y, minlength=problem.n_classes) + smoothing
    return {"log_shares": np.log(counts / counts.sum())}


def check_prior(smoothing: float) -> None:
    check_param(smoothing >= 0, "smoothing", smoothing, "a number of at least 0")


PRIOR = Family(
    "the classes' shares, whatever the image",
    fit_prior,
    PriorHead,
    defaults={"smoothing": 1.0},
    grid=({"smoothing": 1.0}, {"smoothing": 10.0}),
    check=check_prior,
    weighted=False,
)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "FAMILIES", dict(registry.FAMILIES))
    monkeypatch.setattr(artifact, "FAMILIES", registry.FAMILIES)
    registry.register("prior", PRIOR)
    yield


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    commands.app([*map(str, arguments), "--json"], standalone_mode=False)
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_it_is_listed_trained_compared_and_predicts(
    tmp_path: Path, engine: CountingEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(60):
        write_picture(tmp_path / "corpus" / ("a" if number % 3 else "b") / f"{number}.png", number)
    embed(str(tmp_path / "corpus"), tmp_path / "store")
    store = ("--store", tmp_path / "store")
    assert {row["head"]: row for row in run(capsys, "heads")}["prior"]["parameters"] == {"smoothing": 1.0}
    trained = run(capsys, "train", *store, "--head", "prior", "--param", "smoothing=3")
    assert trained["test"] == trained["baseline"] and trained["params"] == {"smoothing": 3}
    board = run(capsys, "compare", *store, "--heads", "prior,ncm")["leaderboard"]
    assert sorted((row["head"], *row["params"].values()) for row in board) == [
        ("ncm",),
        ("prior", 1.0),
        ("prior", 10.0),
    ]
    (told,) = run(capsys, "predict", tmp_path / "corpus" / "b" / "0.png", *store, "--head", trained["head_id"])
    assert told["label"] == "a"
    with pytest.raises(UsageError, match=r"Parameter smoothing: Expected: a number of at least 0"):
        run(capsys, "train", *store, "--head", "prior", "--param", "smoothing=-1")


def test_it_need_not_become_layers() -> None:
    X = np.random.default_rng(0).normal(size=(9, 3))
    head = registry.fit(HeadSpec("prior"), X, np.array(["a", "b", "a"] * 3))
    assert np.allclose(head.probabilities(X)[0], [7 / 11, 4 / 11]) and head.layer_arrays == []
    with pytest.raises(HeadError, match="A prior head cannot become layers"):
        keras_head.as_layers(replace(head))
