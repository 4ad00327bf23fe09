"""Predicting: features that the set could not store are a failed prediction, and no label."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import CountingEngine
from featurestore.errors import StoreCorrupt, StoreNotFound, UsageError
from featurestore.store import FeatureStore
from heads import artifact
from pipelines import commands
from pipelines import predict as predicting
from pipelines.embedding.embed import embed
from pipelines.options import EmbedOptions, PredictOptions, TrainOptions
from pipelines.predict import Prediction
from pipelines.stored_heads import find_head
from pipelines.training import train_head

WILD = {250: 1e6, 251: np.nan, 252: np.inf, 253: -1e6, 254: 3e38}  # what the engine gives images of one grey


class WildEngine(CountingEngine):
    """Some greys have features that are no use."""

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        vectors = super().__call__(pixels)
        for grey, value in WILD.items():
            vectors[(pixels == grey).all(axis=(1, 2, 3)), 3] = value
        return vectors


def grey(folder: Path, level: int) -> str:
    path = folder / f"{level}.png"
    Image.new("RGB", (16, 16), (level,) * 3).save(path)
    return str(path)


@pytest.mark.parametrize(("dtype", "good"), [("float16", {100}), ("float32", {100, 250, 253})])
def test_features_that_cannot_be_stored_are_no_prediction(
    corpus: Path,
    tmp_path: Path,
    engine: CountingEngine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dtype: str,
    good: set[int],
) -> None:
    store = tmp_path / "store"
    embed(str(corpus), store, EmbedOptions(dtype=dtype))
    train_head(store, TrainOptions("ncm"))
    monkeypatch.setattr(predicting, "open_engine", lambda *_args, **_options: WildEngine(batch_size=4))
    levels = [250, 100, 251, 252, 253, 254]
    asked = ["penult", "predict", *(grey(tmp_path, level) for level in levels), "--store", str(store), "--json"]
    monkeypatch.setattr("sys.argv", asked)
    with pytest.raises(SystemExit) as ended:
        commands.main()
    out, err = capsys.readouterr()
    told = {int(Path(answer["uri"]).stem): answer for answer in json.loads(out.splitlines()[-1])}
    assert ended.value.code == 1 and list(told) == levels
    assert f"{len(levels) - len(good)} of 6 images got no label" in err and "nan%" not in err
    for level, answer in told.items():
        if level in good:
            assert answer["label"] in "abc" and 0 < answer["probability"] <= 1 and "error" not in answer
        else:
            assert (answer["label"], answer["probability"], answer["top"]) == (None, None, [])
            assert answer["error_type"] == "overflow" and "--dtype float32" in answer["error"]
            assert f"overflow: {answer['error']}" in err


# --- the order of labels, the names of heads, and what is said


@pytest.fixture
def store(corpus: Path, tmp_path: Path, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Thirty images' features and a head; the engine counts for predictions too."""
    embed(str(corpus), tmp_path / "store")
    train_head(tmp_path / "store", TrainOptions("ncm"))
    monkeypatch.setattr(predicting, "open_engine", lambda *_args, **_options: engine)
    engine.images = 0
    return tmp_path / "store"


class Equal:
    """A head of forty labels of the same probability but for two, none of them last in the alphabet."""

    classes = np.array([f"c{number:02}" for number in range(40)])

    def probabilities(self, X: np.ndarray) -> np.ndarray:
        found = np.full((len(X), 40), 0.02)
        found[:, 7], found[:, 30] = 0.1, 0.14
        return found


def test_labels_come_by_probability_and_equal_ones_in_their_order(
    store: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = predicting.head_of
    monkeypatch.setattr(predicting, "head_of", lambda *given: (Equal(), real(*given)[1]))
    for top in (1, 2, 5, 40, 41):
        (found,) = predicting.predict([str(corpus / "a" / "00.png")], store, options=PredictOptions(top))
        order = [30, 7, *(number for number in range(40) if number not in (7, 30))]
        assert [label for label, _ in found.top] == [f"c{number:02}" for number in order[:top]]
        assert (found.label, found.probability) == ("c30", 0.14) == found.top[0]
    with pytest.raises(UsageError, match=r"--top.* from 1 to 1,000,000"):
        predicting.predict(["x"], store, options=PredictOptions(0))


def test_only_what_the_store_lacks_is_embedded_in_batches(
    store: Path, corpus: Path, tmp_path: Path, engine: CountingEngine
) -> None:
    batches: list[int] = []
    real = CountingEngine.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            CountingEngine, "__call__", lambda self, pixels: batches.append(len(pixels)) or real(self, pixels)
        )
        known = [str(corpus / "a" / "00.png"), (corpus / "b" / "01.png").as_uri()]
        assert [one.error for one in predicting.predict(known, store)] == [None, None] and batches == []
        new = [grey(tmp_path, level) for level in range(9)]
        gone = str(tmp_path / "gone.png")
        found = predicting.predict([*new, *known, gone, new[0]], store)
        assert batches == [2, 8, 2]  # the canary's images, and ten that are not known
    assert [one.given for one in found] == [*new, *known, gone, new[0]]
    assert [one.error_type for one in found] == [None] * 11 + ["vanished", None]
    assert found[0].top == found[-1].top and found[0].top != found[5].top


def test_a_prediction_as_json() -> None:
    good = Prediction("file:///a", "x", 0.5, [("x", 0.5)], given="a")
    assert good.to_json() == {"uri": "file:///a", "label": "x", "probability": 0.5, "top": [("x", 0.5)]}
    bad = Prediction("file:///a", error_type="empty", error="It is empty.", given="a")
    assert bad.to_json() == {
        **{"uri": "file:///a", "label": None, "probability": None, "top": []},
        **{"error_type": "empty", "error": "It is empty."},
    }


def test_the_newest_heads_are_named(tmp_path: Path) -> None:
    opened = FeatureStore.create(tmp_path / "store")
    with pytest.raises(StoreNotFound) as caught:
        find_head(opened, None)
    assert str(caught.value) == (f"{opened.path} has no head yet: run `penult compare --store {opened.path}` first.")
    wanted = "Expected: one head's id, its beginning or its ending, or an alias. Got: 'x', no such head; the newest: "
    with pytest.raises(StoreNotFound) as caught:
        find_head(opened, "x")
    assert str(caught.value) == f"{wanted}none."
    names = [f"2026010{number}T000000-train-a{number}b" for number in range(1, 8)]
    for name in names:
        (opened.path / "runs" / name).mkdir(parents=True)
        (opened.path / "runs" / name / "head.json").touch()
        if name != names[6]:
            (opened.path / "runs" / name / "run.json").touch()  # the last one is not done yet
    with pytest.raises(StoreNotFound) as caught:
        find_head(opened, "x")
    assert str(caught.value) == f"{wanted}{', '.join(reversed(names[1:6]))}."
    with pytest.raises(StoreNotFound) as caught:
        find_head(opened, "2026")
    assert f"Got: '2026', 6 of them, the newest: {names[5]}, " in str(caught.value)
    assert find_head(opened, "a3b") == names[2]


def test_a_head_tells_what_it_was_trained_on(store: Path) -> None:
    opened = FeatureStore(store)
    run_id = find_head(opened, None)
    head, meta = artifact.load(store / "runs" / run_id)
    for missing, said in (
        (["fingerprint"], "fingerprint"),
        (["fingerprint", "feature_set"], "feature_set and fingerprint"),
    ):
        shutil.rmtree(store / "runs" / "other", ignore_errors=True)
        artifact.save(head, store / "runs" / "other", {key: value for key, value in meta.items() if key not in missing})
        with pytest.raises(StoreCorrupt) as caught:
            predicting.head_of(opened, "other")
        expected = f"Expected: the head in {store / 'runs' / 'other'} to tell its {said}. Got: nothing."
        assert str(caught.value) == str(StoreCorrupt(expected))
    loaded, told = predicting.head_of(opened, run_id)
    assert loaded.classes.tolist() == ["a", "b", "c"] and told["feature_set"] == opened.resolve()
