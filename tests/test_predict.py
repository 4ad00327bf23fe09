"""Predicting: features that the set could not store are a failed prediction, and no label."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import CountingEngine
from pipelines import cli
from pipelines import predict as predicting
from pipelines.embed import EmbedOptions, embed
from pipelines.fit import train_head

WILD = {250: 1e6, 251: np.nan, 252: np.inf, 253: -1e6, 254: 3e38}  # what the engine gives pictures of one grey


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
    train_head(store, "ncm")
    monkeypatch.setattr(predicting, "open_engine", lambda *_args, **_options: WildEngine(batch_size=4))
    levels = [250, 100, 251, 252, 253, 254]
    asked = ["penult", "predict", *(grey(tmp_path, level) for level in levels), "--store", str(store), "--json"]
    monkeypatch.setattr("sys.argv", asked)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    told = {int(Path(answer["uri"]).stem): answer for answer in json.loads(out.splitlines()[-1])}
    assert ended.value.code == 1 and list(told) == levels
    assert f"{len(levels) - len(good)} of 6 pictures got no label" in err and "nan%" not in err
    for level, answer in told.items():
        if level in good:
            assert answer["label"] in "abc" and 0 < answer["probability"] <= 1 and "error" not in answer
        else:
            assert (answer["label"], answer["probability"], answer["top"]) == (None, None, [])
            assert answer["error_type"] == "overflow" and "--dtype float32" in answer["error"]
            assert f"overflow: {answer['error']}" in err
