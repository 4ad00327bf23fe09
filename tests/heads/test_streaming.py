"""Comparisons whose training rows are read from the store on every pass."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import Result
from typer.testing import CliRunner

import builders
from featurestore.dataset import Dataset
from featurestore.errors import HeadError, UsageError
from featurestore.schema import features_batch
from featurestore.splits import Split
from featurestore.store import FeatureStore
from featurestore.vectors import StoredVectors
from heads.comparison import streaming
from heads.solvers.rows import StreamedRows, _subtract
from pipelines.commands import app

IMAGES = 3000
LINEAR = ("--heads", "logreg,svm,ridge", "--class-weight", "none,balanced")
TIGHT = "0.06MB"  # 3,000 rows of 8 numbers are 96 kB, a tenth of them, for val and test, 10 kB


def features(name: str, label: str) -> np.ndarray:
    """Two hundred different vectors a class, all near the class's own."""
    near = np.random.default_rng(ord(label)).normal(size=builders.SPEC.width)
    return near + np.random.default_rng(int(name)).normal(size=builders.SPEC.width) + 3


def make(path: Path, monkeypatch: pytest.MonkeyPatch, spoilt: str = "") -> Path:
    """A store of three classes that overlap, in shards of their own; ``spoilt`` has a feature that is not finite."""
    rows = [builders.Picture(f"file:///{i}.png", b"%d" % i, "abc"[i % 7 % 3]) for i in range(IMAGES)]
    labels = {row.content: row.label for row in rows}

    def feature_rows(schema: Any, run_id: str, contents: Any) -> Any:
        X = np.stack([features(content.decode(), labels[content]) for content in contents])
        X[[content.decode() == spoilt for content in contents], 0] = np.inf
        return features_batch(schema, np.array([builders.key(c) for c in contents], "S32"), X, run_id)

    monkeypatch.setattr(builders, "feature_rows", feature_rows)
    store = FeatureStore.create(path)
    with store.lock():
        store.commit(builders.journal(store, "run", [rows[:1000], rows[1000:1500], rows[1500:]]))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        return make(tmp_path_factory.mktemp("streaming") / "store", patch)


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A store of the test's own."""
    return Path(shutil.copytree(made, tmp_path / "store"))


def compare(store: Path, *arguments: str) -> Result:
    return CliRunner().invoke(
        app, ["compare", "--store", str(store), "--val", "5%", "--test", "5%", "--json", *arguments]
    )


def told(done: Result) -> dict[str, Any]:
    assert done.exception is None, done.exception
    return json.loads(done.stdout.splitlines()[-1])


def scores(result: dict[str, Any]) -> dict[str, float]:
    return {f"{row['head']} {row['params']} {row['class_weight']}": row["val"] for row in result["leaderboard"]}


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how often training rows are streamed."""
    counted = [0]
    blocks = StreamedRows.blocks

    def counting(self: StreamedRows, size: int) -> Any:
        counted[0] += 1
        return blocks(self, size)

    monkeypatch.setattr(StreamedRows, "blocks", counting)
    return counted


def test_streamed_and_in_memory_are_the_same_comparison(
    made: Path, store: Path, tmp_path: Path, passes: list[int]
) -> None:
    streamed = told(compare(store, *LINEAR, "--memory-limit", TIGHT))
    assert passes[0] > 0
    passes[0] = 0
    again = told(compare(store, *LINEAR))  # the same keys: nothing is fitted but the winner's learning curve
    held = told(compare(Path(shutil.copytree(made, tmp_path / "other")), *LINEAR, "--memory-limit", "1GB"))
    assert passes[0] == 0
    assert scores(streamed) == scores(again)
    row = 1 / streamed["n"]["val"]
    assert scores(held) == pytest.approx(scores(streamed), abs=1.01 * row)
    for name in ("head", "params"):
        assert held["winner"][name] == streamed["winner"][name]
    assert held["n"] == streamed["n"]
    assert held["winner"]["test"] == pytest.approx(streamed["winner"]["test"], abs=1.01 / streamed["n"]["test"])
    assert streamed["winner"]["test"] > 0.5 and len(set(scores(streamed).values())) > 3


def test_known_outcomes_are_not_streamed_anew(store: Path, passes: list[int]) -> None:
    first = told(compare(store, "--heads", "ridge", "--memory-limit", TIGHT))
    assert passes[0] > 0
    passes[0] = 0
    again = told(compare(store, "--heads", "ridge", "--memory-limit", TIGHT))
    assert passes[0] == 0  # the winner's head is kept too
    assert scores(again) == scores(first) and again["winner"]["test"] == first["winner"]["test"]


def test_what_is_left_out_is_said(store: Path, tmp_path: Path) -> None:
    heads = "".join(f"[heads.{name}]\n" for name in ("dense", "knn", "ncm", "logreg", "svm", "ridge"))
    kernels = "".join(f"[heads.kernel-{name}]\nlandmarks = [20]\n" for name in ("svm", "logreg"))
    (tmp_path / "search.toml").write_text(heads + kernels)
    result = told(compare(store, "--search", str(tmp_path / "search.toml"), "--memory-limit", TIGHT))
    swept = {"logreg", "svm", "ridge", "kernel-logreg", "kernel-svm"}
    assert {row["head"] for row in result["leaderboard"]} == swept
    assert result["learning_curve"] is None
    assert any("streamed" in note and "no learning curve" in note for note in result["notes"])
    assert any(note.startswith("ncm, knn, dense: left out") for note in result["notes"])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--cv", "3"), "--cv"),
        (("--fewshot-k", "1"), "--fewshot-k"),
        (("--views", "2"), "--views"),
        (("--heads", "knn"), "logreg, svm, ridge, kernel-logreg, kernel-svm"),
    ],
)
def test_what_needs_the_rows_in_memory_is_refused(store: Path, options: tuple[str, ...], named: str) -> None:
    error = compare(store, *options, "--memory-limit", TIGHT).exception
    assert isinstance(error, UsageError) and named in str(error) and "--memory-limit" in str(error)


def test_a_limit_that_val_and_test_exceed_is_refused(store: Path) -> None:
    error = compare(store, "--memory-limit", "0.02MB").exception
    assert isinstance(error, UsageError)
    assert all(word in str(error) for word in ("val and test", "raise it to", "--val and --test"))


@pytest.mark.parametrize("text", ["4", "GB", "-1GB", "four GB", "0MB", "infGB", "4XB"])
def test_an_amount_of_memory_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    error = compare(tmp_path, f"--memory-limit={text}").exception
    assert isinstance(error, UsageError) and "Expected: an amount of memory such as 500MB" in str(error)


@pytest.mark.parametrize("text", ["1GB", "1000MB", "0.5GiB", "1 gb"])
def test_amounts_of_memory_in_which_all_fits(store: Path, text: str, passes: list[int]) -> None:
    told(compare(store, "--heads", "ridge", "--memory-limit", text))
    assert passes[0] == 0


def test_features_that_are_not_finite_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "spoilt", monkeypatch, spoilt="18")
    data = FeatureStore(path).dataset(split=Split(0.05, 0.05))
    assert data.splits[~np.isfinite(data.X).all(axis=1)].tolist() == ["train"]
    error = compare(path, "--heads", "ridge", "--memory-limit", TIGHT).exception
    assert isinstance(error, HeadError) and "finite" in str(error)


def test_stored_vectors_are_those_in_memory(store: Path) -> None:
    opened = FeatureStore(store)
    held, stored = opened.dataset(), opened.dataset(memory_limit=1000)
    assert stored.stored is not None and stored.X.size == 0 and stored.width == held.width
    rows = np.random.default_rng(0).permutation(len(held))[:500]
    for some in (rows, held.splits == "val"):
        np.testing.assert_array_equal(stored.take(some).read().X, held.take(some).X)
    part = stored.part("train")
    assert part.stored is not None
    pieces = np.concatenate(list(part.stored.pieces()))
    np.testing.assert_array_equal(pieces.astype(np.float32), held.part("train").X[part.stored.order])


def test_float16_is_widened_exactly() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].reshape(-1, 8)
    wide = np.empty(finite.shape, np.float32)
    _subtract(finite, np.zeros(8, np.float32), wide)
    np.testing.assert_array_equal(wide.view(np.uint32), finite.astype(np.float32).view(np.uint32))


def stored_dataset(width: int, memory_limit: int) -> tuple[Dataset, np.ndarray]:
    """400 rows whose vectors are read in pieces of 150, half of them to train on, and the vectors."""
    n, X = 400, np.arange(400 * width, dtype=np.float32).reshape(400, width)

    def scan() -> Any:
        for piece in np.split(X, [150, 300]):
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(piece.ravel()), width)
            yield pa.record_batch([vectors], ["vector"])

    data = Dataset(
        feature_set="set",
        fingerprint="f" * 64,
        X=np.empty((n, 0), np.float32),
        y=np.array(["a", "b"])[np.arange(n) % 2],
        keys=np.array([i.to_bytes(32, "big") for i in range(n)], "S32"),
        uris=np.array([f"{i}.png" for i in range(n)]),
        splits=np.array(["train", "train", "val", "test"])[np.arange(n) % 4],
        stored=StoredVectors(scan, np.arange(n), n, width, memory_limit),
    )
    return data, X


def test_a_quarter_of_the_limit_may_be_val_and_test() -> None:
    """200 of 2,500 numbers are 2,000,000 bytes."""
    data, X = stored_dataset(2500, 8_000_000)
    parts = streaming.split(data)
    assert parts.keys() == {"train", "val", "test"} and parts["train"].stored is not None
    for name, rows in (("val", np.arange(2, 400, 4)), ("test", np.arange(3, 400, 4))):
        assert parts[name].stored is None and (X[rows] == parts[name].X).all()
        assert parts[name].uris.tolist() == [f"{row}.png" for row in rows]
    over, _ = stored_dataset(2500, 7_999_999)
    with pytest.raises(UsageError) as said:
        streaming.split(over)
    assert str(said.value) == (
        "The 200 images of val and test take 2 MB and may take a quarter of --memory-limit, 8 MB: raise it to 8 MB, "
        "or lower --val and --test."
    )
    assert streaming._megabytes(1_000_001) == "2 MB" and streaming._megabytes(1_234_000_000) == "1,234 MB"
    held = data.read()
    assert [(part.X == held.part(name).X).all() for name, part in streaming.split(held).items()] == [True] * 3


@pytest.mark.parametrize(
    ("limit", "sampled", "room"),
    [(5000, 25, 500), (4999, 24, 499), (10_000, 50, 1000), (10**9, 50, 10**8), (399, 2, 39), (0, 2, 0)],
)
def test_a_fifth_of_the_limit_may_be_a_sample_and_a_tenth_problems(
    monkeypatch: pytest.MonkeyPatch, limit: int, sampled: int, room: int
) -> None:
    """Of 200 training rows of 40 bytes a quarter at most, and two at least."""
    asked = []
    surveyed = StreamedRows.surveyed
    monkeypatch.setattr(StreamedRows, "surveyed", lambda *args: asked.append(args[1:]) or surveyed(*args))
    data, X = stored_dataset(10, limit)
    train = data.part("train")
    rows = streaming.streamed_rows(train)
    assert asked == [(200, sampled, room)] and (rows.n, rows.room) == (200, room)
    assert train.stored is not None
    own = X[data.splits == "train"][train.stored.order]
    pieces = [block[:, :-1] + rows.basis.mean for _, block in rows.blocks(64)]
    np.testing.assert_allclose(np.concatenate(pieces), own, rtol=1e-6)
