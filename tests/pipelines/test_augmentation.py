"""Augmented views: what they look like, and that each is computed and stored once."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from decoding import decoded
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_sample_images

from featurestore.dataset import hex_ids
from featurestore.errors import UsageError
from featurestore.store import FeatureStore
from heads import artifact
from heads.base import softmax
from heads.comparison.search import from_options
from pipelines import commands
from pipelines.embedding.embed import embed
from pipelines.images.augmentation import FILLS, Augmentation
from pipelines.images.views import random_view
from pipelines.options import CompareOptions, EmbedOptions, FitData, TrainOptions
from pipelines.training import compare_heads, train_head

PHOTO = np.ascontiguousarray(load_sample_images().images[0][:200, :200])
STRONG = Augmentation(rotation=40, shift=0.2, shear=12, zoom=0.2, flip="horizontal")
SIDE = 32  # of images for the network
SMALL = EmbedOptions(input_size=SIDE)
VIEWS = replace(SMALL, views=3, augmentation=STRONG)


@settings(max_examples=30)
@given(key=st.binary(min_size=32, max_size=32), view=st.integers(0, 10_000), fill=st.sampled_from(FILLS))
def test_without_movement_a_view_is_the_picture(key, view, fill):
    assert (random_view(PHOTO, Augmentation(fill=fill), key, view) == PHOTO).all()


@settings(max_examples=20)
@given(key=st.binary(min_size=32, max_size=32), view=st.integers(0, 10_000))
def test_flips_alone_move_no_pixel_off_the_grid(key, view):
    flipped = random_view(PHOTO, Augmentation(flip="both"), key, view)
    assert any((flipped == PHOTO[::y, ::x]).all() for y in (1, -1) for x in (1, -1))


def test_views_depend_on_picture_number_and_seed_and_on_nothing_else():
    first = random_view(PHOTO, STRONG, b"a", 1)
    assert (first == random_view(PHOTO, STRONG, b"a", 1)).all()
    others = [(STRONG, b"b", 1), (STRONG, b"a", 2), (replace(STRONG, seed=1), b"a", 1)]
    for augmentation, key, view in others:
        assert (first != random_view(PHOTO, augmentation, key, view)).any()


@pytest.mark.parametrize("fill", FILLS)
def test_a_shift_moves_the_picture_and_fills_the_border(fill):
    side = PHOTO.shape[0]
    found = set()
    for number in range(12):
        view = random_view(PHOTO, Augmentation(shift=0.3, fill=fill), b"x", number).astype(int)
        black = (view == 0).all(axis=2)
        found.add(bool(black[[0, -1]].all(axis=1).any() or black[:, [0, -1]].all(axis=0).any()))
        middle = view[side // 3 : -side // 3, side // 3 : -side // 3]
        assert middle.std() > 10  # the image is still there
    assert (True in found) == (fill == "black")


def test_rotation_turns_about_the_centre_and_no_further_than_it_may():
    y, x = np.mgrid[:101, :101] - 50
    dot = np.zeros((101, 101, 3), np.uint8)
    dot[(x - 30) ** 2 + y**2 < 20] = 200
    degrees = []
    for number in range(40):
        turned = random_view(dot, Augmentation(rotation=40), b"x", number)[..., 0].astype(float)
        at_x, at_y = (turned * x).sum() / turned.sum(), (turned * y).sum() / turned.sum()
        assert abs(np.hypot(at_x, at_y) - 30) < 0.5
        degrees.append(np.degrees(np.arctan2(at_y, at_x)))
    assert max(degrees) > 25 and min(degrees) < -25
    assert max(np.abs(degrees)) < 41


# What is drawn for three views of b"a picture", seed 7: degrees turned and sheared, shares of the side, factors, flips.
DRAWN = {
    1: (0.69286643, 4.08346232, (0.1171034, 0.170694), (0.83061277, 0.75167676), (-1, 1)),
    4: (-13.93480077, 13.22668738, (0.15734972, -0.0341571), (0.74004637, 0.93810749), (1, -1)),
    7: (-17.96118541, 15.67488334, (-0.13177035, -0.0987271), (0.7232822, 0.93726356), (1, 1)),
}


ALL = {"rotation": 30, "shear": 20, "shift": 0.2, "zoom": 0.3, "flip": "both"}


@pytest.mark.parametrize("view", DRAWN)
@pytest.mark.parametrize(
    "given",
    [ALL, *({kind: most} for kind, most in ALL.items()), {"flip": "horizontal"}, {"flip": "vertical"}, {}],
    ids=str,
)
def test_every_pixel_of_a_view_comes_from_where_its_draws_say(view, given):
    """An image whose colours are coordinates shows from where each pixel was taken; moved point by point here.

    As in Keras's ImageDataGenerator: about the centre, flipped, scaled, sheared, turned, and then shifted. Every
    number is drawn, also those of no effect.
    """
    draws = zip(ALL, DRAWN[view], (0, 0, (0, 0), (1, 1), (1, 1)), strict=True)
    degrees, sheared, (shift_x, shift_y), (zoom_x, zoom_y), (flip_x, flip_y) = (
        drawn if kind in given else still for kind, drawn, still in draws
    )
    flip_x = 1 if given.get("flip") == "vertical" else flip_x
    flip_y = 1 if given.get("flip") == "horizontal" else flip_y
    side = 100
    y, x = np.mgrid[:side, :side] + 0.5
    coordinates = np.stack([2 * x, 2 * y, 0 * x], axis=2).astype(np.uint8)
    augmentation = Augmentation(**given, fill="black", seed=7)
    found = random_view(coordinates, augmentation, b"a picture", view)[..., :2] / 2

    across, down = flip_x * zoom_x * (x - side / 2), flip_y * zoom_y * (y - side / 2)
    turn, slant = np.radians(degrees), np.radians(sheared)
    across, down = across - np.sin(slant) * down, np.cos(slant) * down
    across, down = np.cos(turn) * across - np.sin(turn) * down, np.sin(turn) * across + np.cos(turn) * down
    expected = np.stack([across + side / 2 + shift_x * side, down + side / 2 + shift_y * side], axis=2)
    inside = ((expected > 1.5) & (expected < side - 1.5)).all(axis=2)
    assert inside.mean() > 0.4 and np.abs(found - expected)[inside].max() < 0.6
    outside = ((expected < -1) | (expected > side + 1)).any(axis=2)
    assert not found[outside].any()


@pytest.mark.parametrize(
    "wrong", [{"rotation": 181}, {"shift": -0.1}, {"zoom": 1.0}, {"flip": "sideways"}, {"fill": "wrap"}]
)
def test_impossible_augmentations_are_usage_errors(wrong):
    with pytest.raises(UsageError, match=f"--{next(iter(wrong))}"):
        Augmentation(**wrong).check()


def test_views_are_stored_in_a_set_of_their_own_and_computed_once(corpus, tmp_path, engine):
    store = tmp_path / "store"
    base = embed(str(corpus), store, SMALL)
    views = embed(str(corpus), store, VIEWS)
    assert (base.embedded, views.embedded, engine.images) == (30, 30, 30 + 90)
    assert views.feature_set.endswith("-views") and views.fingerprint != base.fingerprint
    opened = FeatureStore(store)
    assert opened.resolve() == base.feature_set == opened.resolve("efficientnet")
    assert opened.views_sets(base.feature_set) == [views.feature_set]
    numbers = opened.to_arrow(views.feature_set).column("view").to_pylist()
    assert sorted(numbers) == sorted([1, 2, 3] * 30)

    again = embed(str(corpus), store, VIEWS)
    assert (again.embedded, again.unchanged, engine.images) == (0, 30, 120)


def test_more_views_compute_only_what_is_missing(corpus, tmp_path, engine):
    store = tmp_path / "store"
    embed(str(corpus), store, VIEWS)
    shutil.copy(corpus / "a" / "00.png", corpus / "copy.png")
    before = engine.images
    more = embed(str(corpus), store, replace(VIEWS, views=5))
    assert engine.images - before == 2 * 30
    assert (more.embedded, more.deduplicated) == (30, 1)
    keys, counts = FeatureStore(store).view_counts(more.feature_set)
    assert len(keys) == 30 and (counts == 5).all()
    fewer = embed(str(corpus), store, replace(VIEWS, views=2))
    assert fewer.embedded == 0 and fewer.feature_set == more.feature_set


def test_stored_views_are_the_features_of_those_very_views(corpus, tmp_path, engine):
    store = tmp_path / "store"
    name = embed(str(corpus), store, VIEWS).feature_set
    files = sorted(corpus.rglob("*.png"))[:7]
    keys = np.sort(np.array([hashlib.sha256(f.read_bytes()).digest() for f in files], "S32"))
    X, rows = FeatureStore(store).views(name, keys, 2)
    assert X.shape == (14, engine.width) and rows.tolist() == [i // 2 for i in range(14)]
    for file in files:
        data = file.read_bytes()
        key = hashlib.sha256(data).digest()
        at = int(np.searchsorted(keys, np.array(key, "S32")))
        pixels = decoded(data, SIDE).pixels
        expected = engine(np.stack([random_view(pixels, STRONG, key, view) for view in (1, 2)]))
        assert np.array_equal(X[rows == at], expected.astype(np.float16).astype(np.float32)), hex_ids(keys[[at]])


def test_another_augmentation_is_another_set(corpus, tmp_path, engine):
    store = tmp_path / "store"
    base = embed(str(corpus), store, SMALL).feature_set
    for flip in ("none", "vertical"):
        embed(str(corpus), store, replace(SMALL, views=1, augmentation=Augmentation(rotation=5, flip=flip)))
    assert len(FeatureStore(store).views_sets(base)) == 2


@pytest.mark.parametrize("options", [EmbedOptions(views=2), EmbedOptions(augmentation=STRONG), EmbedOptions(views=-1)])
def test_views_need_an_augmentation(options, corpus, tmp_path):
    with pytest.raises(UsageError, match=r"[Vv]iews"):
        embed(str(corpus), tmp_path / "store", options)


def test_a_run_of_views_that_died_is_completed(corpus, tmp_path, engine, monkeypatch):
    """Some of four shards finish; the rerun embeds the others."""
    store, options = tmp_path / "store", replace(VIEWS, shard_images=8)
    whole = type(engine).__call__

    def dying(self, pixels):
        if self.images >= 60:
            raise RuntimeError("the power went")
        return whole(self, pixels)

    monkeypatch.setattr(type(engine), "__call__", dying)
    with pytest.raises(RuntimeError, match="the power went"):
        embed(str(corpus), store, options)
    monkeypatch.setattr(type(engine), "__call__", whole)
    done = embed(str(corpus), store, options)
    keys, counts = FeatureStore(store).view_counts(done.feature_set)
    assert len(keys) == 30 and (counts == 3).all()
    assert 0 < done.embedded < 30


def test_views_augment_training_rows_alone(corpus, tmp_path, engine):
    store = tmp_path / "store"
    embed(str(corpus), store, SMALL)
    name = embed(str(corpus), store, VIEWS).feature_set
    opened = FeatureStore(store)
    train = opened.dataset().part("train")
    more = opened.augmented(train, 2)
    n = len(train)
    assert len(more) == 3 * n and set(more.splits) == {"train"}
    assert np.array_equal(more.X[:n], train.X)
    assert (more.y[n:] == np.repeat(train.y, 2)).all() and (more.ids[n:] == np.repeat(train.ids, 2)).all()
    keys = np.array([bytes.fromhex(id) for id in train.ids], "S32")
    assert np.array_equal(more.X[n:], opened.views(name, keys, 2)[0])

    with pytest.raises(UsageError, match="--views 4"):
        opened.augmented(train, 4)
    with pytest.raises(UsageError, match="--views-set"):
        opened.augmented(train, 2, "another")
    embed(str(corpus), store, replace(VIEWS, augmentation=Augmentation(rotation=1)))
    with pytest.raises(UsageError, match="several kinds"):
        opened.augmented(train, 2)
    assert len(opened.augmented(train, 3, name)) == 4 * n


def test_without_views_training_says_how_to_make_them(corpus, tmp_path, engine):
    embed(str(corpus), tmp_path / "store", SMALL)
    opened = FeatureStore(tmp_path / "store")
    with pytest.raises(UsageError, match="penult embed SOURCE --views 2"):
        opened.augmented(opened.dataset().part("train"), 2)


def digits(folder, count=120):
    """Scikit-learn's digits 1, 4 and 7 as images; their views by an engine of block means tell them apart."""
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    rows = np.flatnonzero(np.isin(data.target, (1, 4, 7)))[:count]
    for row in rows:
        path = folder / str(data.target[row]) / f"{row:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(data.images[row] * 15)).resize((32, 32)).convert("RGB").save(path)
    return folder


def test_train_and_compare_say_what_views_gained(tmp_path, engine):
    store = tmp_path / "store"
    folder = digits(tmp_path / "digits")
    embed(str(folder), store, SMALL)
    embed(str(folder), store, replace(VIEWS, augmentation=Augmentation(rotation=5, shift=0.05)))

    plain = train_head(store, TrainOptions("logreg"))
    viewed = train_head(store, TrainOptions("logreg", data=FitData(views=3)))
    assert viewed["views"] == 3 and viewed["without_views"]["val"] == plain["val"]
    assert viewed["n"] == plain["n"]
    gain = 100 * (viewed["val"] - plain["val"])
    assert f"{gain:+.1f} points" in viewed["note"]
    report = (store / "runs" / viewed["run_id"] / "report.html").read_text()
    assert "3 views" in report and f"{gain:+.1f} points" in report

    compared = compare_heads(store, CompareOptions(search=from_options(["ncm", "logreg"]), data=FitData(views=3)))
    rows = [row for row in compared["leaderboard"] if row.get("views") == 3]
    assert len(rows) == 1
    best = max(row["val"] for row in compared["leaderboard"] if "views" not in row)
    assert f"{100 * (rows[0]['val'] - best):+.1f} points" in rows[0]["note"]
    assert compared["winner"]["val"] == max(best, rows[0]["val"])
    _, meta = artifact.load(store / "runs" / compared["run_id"])
    assert meta["fingerprint"] == FeatureStore(store).spec(compared["feature_set"]).fingerprint()


def test_a_head_with_views_is_the_head_of_those_rows(tmp_path, engine):
    """Scikit-learn, given the images and the views, agrees."""
    from sklearn.linear_model import LogisticRegression

    store = tmp_path / "store"
    folder = digits(tmp_path / "digits")
    embed(str(folder), store, SMALL)
    embed(str(folder), store, replace(VIEWS, augmentation=Augmentation(rotation=5)))
    opened = FeatureStore(store)
    data = opened.dataset()
    rows, val = opened.augmented(data.part("train"), 3), data.part("val")
    mean, scale = rows.X.mean(0), rows.X.std(0)
    reference = LogisticRegression(C=0.01, max_iter=2000, tol=1e-8).fit((rows.X - mean) / scale, rows.y)
    head = artifact.load(store / "runs" / train_head(store, TrainOptions("logreg", data=FitData(views=3)))["run_id"])[0]
    expected = reference.predict_proba((val.X - mean) / scale)
    assert np.abs(softmax(head.scores(val.X)) - expected).max() < 0.01


def test_views_from_the_command_line(tmp_path, engine, monkeypatch, capsys):
    folder = digits(tmp_path / "digits", 90)
    told = []
    for arguments in (
        ["embed", str(folder), "--views", "2", "--rotation", "5", "--flip", "none", "--input-size", str(SIDE)],
        ["train", "--views", "2", "--head", "ncm"],
        ["status"],
    ):
        monkeypatch.setattr("sys.argv", ["penult", *arguments, "--store", str(tmp_path / "store"), "--json"])
        with pytest.raises(SystemExit) as ended:
            commands.main()
        assert ended.value.code == 0
        told.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    embedded, trained, status = told
    assert embedded["embedded"] == embedded["views"]["embedded"] == 90 and engine.images == 3 * 90
    assert trained["views"] == 2
    assert {s["name"]: (s["rows"], s["views"]) for s in status["sets"]} == {
        embedded["feature_set"]: (90, 0),
        embedded["views"]["feature_set"]: (90, 2.0),
    }


def test_an_impossible_augmentation_is_refused_before_any_work(corpus, tmp_path, monkeypatch, capsys):
    arguments = ["embed", str(corpus), "--views", "2", "--rotation", "400", "--store", str(tmp_path / "store")]
    monkeypatch.setattr("sys.argv", ["penult", *arguments])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == 2 and "--rotation from 0 to 180" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
