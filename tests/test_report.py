"""The report: one file, nothing from outside, nothing that a label can smuggle in."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics
from sklearn.datasets import load_digits

from featurestore.dataset import Dataset
from heads import charts
from heads.compare import compare
from heads.report import render
from heads.train import train

HOSTILE = "<script>alert(\"1\")</script> & 'so' {{ 7 * 7 }}"
VOID = {"meta", "img", "br", "input"}
DIGITS = load_digits()


class Page(HTMLParser):
    """Elements and attributes of a page; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def dataset(labels):
    y = labels[DIGITS.target]
    n = len(y)
    return Dataset(
        feature_set=f"pixels {HOSTILE}",
        fingerprint="f" * 64,
        X=(DIGITS.data / 16).astype(np.float32),
        y=y,
        ids=np.array([f"{i:064x}" for i in range(n)]),
        uris=np.array([f"file:///digits/{i}.png" for i in range(n)]),
        splits=np.array(["train", "train", "val", "test"])[np.arange(n) % 4],
    )


def thumbnail(uri):
    number = int(re.search(r"(\d+)\.png", uri)[1])
    buffer = io.BytesIO()
    Image.fromarray((DIGITS.images[number] * 15).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


NAMES = np.array([*(f"digit {i}" for i in range(9)), HOSTILE])


@pytest.fixture(scope="module")
def digits():
    data = dataset(NAMES)
    return data, compare(data, ["ncm", "logreg", "knn"])


def test_one_file_with_everything_in_it(digits):
    data, result = digits
    page = Page(render(result, data, thumbnail, date="2026-01-31", head_id="head-7"))
    assert {"script", "link", "iframe", "object", "a"}.isdisjoint(page.tags)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "action"):
            assert tag == "img" and value.startswith("data:image/png;base64,")
        assert not name.startswith("on")
    style = page.text[: page.text.index("</style>")] if "</style>" in page.text else page.text
    assert "url(" not in style and "@import" not in style
    for shown in ("2026-01-31", "head-7", "f" * 64, f"{100 * result.winner.test:.1f}\u202f%", HOSTILE):
        assert shown in page.text
    assert page.tags.count("rect") > 10


def test_the_numbers_are_those_of_the_test_split(digits):
    data, result = digits
    html = render(result, data, thumbnail, date="today")
    test = data.part("test")
    predicted = result.winner.head.predict(test.X)
    wrong = int((predicted != test.y).sum())
    assert wrong > 0
    assert f"Random batch: 24 of {len(test)}" in html
    assert f"Wrong: {min(wrong, 24)} of {wrong}" in html
    cells = re.findall(r"→ [^:]*: (\d+) \(", html)
    assert sum(map(int, cells)) == len(test)
    diagonal = re.findall(r"<title>digit (\d) → digit \1: (\d+) ", html)
    for digit, count in diagonal:
        assert int(count) == ((test.y == f"digit {digit}") & (predicted == test.y)).sum()
    assert len(diagonal) == 9


def test_the_gallery_shows_each_picture_beside_its_own_label(digits):
    data, result = digits
    html = render(result, data, thumbnail, date="today", per_gallery=5)
    figures = re.findall(r'<figure title="file:///digits/(\d+)\.png">\s*<img src="([^"]*)".*?</figure>', html, re.S)
    assert 5 < len(figures) <= 10
    for number, source in figures:
        assert base64.b64decode(source.split(",")[1]) == thumbnail(f"{number}.png")
    assert render(result, data, thumbnail, date="today", per_gallery=5) == html
    assert render(result, data, thumbnail, date="today", per_gallery=5, seed=1) != html


def test_pictures_that_are_missing_or_no_raster_images(digits):
    data, result = digits
    for broken in (None, b"", b"<svg onload='alert(1)'/>"):
        page = Page(render(result, data, lambda uri, broken=broken: broken, date="today", per_gallery=3))
        assert "img" not in page.tags and "no picture" in page.text


def test_rows_with_errors_notes_and_seeds(digits):
    data, result = digits
    row = result.leaderboard[-1]
    result.leaderboard[-1] = {
        "head": "dense",
        "params": {"hidden": [9, 8]},
        "val": None,
        "val_ci": None,
        "fit_seconds": 0.0,
        "error": f"RuntimeError: {HOSTILE}",
    }
    result.leaderboard[0] |= {"note": "a note.", "val_range": [0.5, 0.75]}
    page = Page(render(result, data, thumbnail, date="today"))
    result.leaderboard[-1] = row
    assert f"failed: RuntimeError: {HOSTILE}" in page.text and "hidden 9→8" in page.text
    assert "a note." in page.text and "seeds from 50.0\u202f% to 75.0\u202f%" in page.text


def test_a_single_head_has_a_leaderboard_of_one_row(digits):
    data, _ = digits
    page = Page(render(train(data, "ncm"), data, thumbnail, date="today"))
    assert page.text.count("nearest class mean") == 1 and "Leaderboard" in page.text


def test_the_random_batch_is_of_all_predictions(digits):
    """About as many are wrong as in the whole split, which cannot be if they were chosen by that."""
    data, result = digits
    html = render(result, data, thumbnail, date="today", per_gallery=200)
    batch = html[html.index("Random batch") : html.index("<h3>Wrong")]
    shown = re.findall(r'<figure title="([^"]*)">.*?<figcaption>(.*?)<br>', batch, re.S)
    test = data.part("test")
    predicted = dict(zip(test.uris, result.winner.head.predict(test.X), strict=True))
    true = dict(zip(test.uris, test.y, strict=True))
    assert len(shown) == len(set(shown)) == 200
    wrong = [uri for uri, caption in shown if ", is " in caption]
    assert wrong and wrong == [uri for uri, _ in shown if predicted[uri] != true[uri]]


@pytest.mark.parametrize("n_classes, names", [(98, True), (257, True), (450, False)])
def test_many_classes(n_classes, names):
    rng = np.random.default_rng(0)
    y = np.arange(n_classes * 8) % n_classes
    X = rng.normal(size=(n_classes, 20))[y] + rng.normal(size=(len(y), 20))
    data = Dataset(
        "many",
        "f" * 64,
        X.astype(np.float32),
        np.array([f"kind {i:03d}" for i in y]),
        y,
        np.array([f"{i}.png" for i in y]),
        np.array(["train", "train", "val", "test"])[np.arange(len(y)) // n_classes % 4],
    )
    html = render(train(data, "ncm"), data, lambda uri: None, date="today")
    page = Page(html)
    assert ('text-anchor="end"' in html) == names
    assert len(html) < 1_500 * n_classes
    assert "top-5" in page.text and "mean class recall" in page.text
    assert "Classes that are confused stand side by side" in page.text
    assert page.tags.count("details") == 1 and f"The other {n_classes - 30} classes" in page.text
    assert [value for tag, name, value in page.attributes if (tag, name) == ("input", "type")] == ["radio"] * 3
    assert sum(map(int, re.findall(r"→ [^:]*: (\d+) \(", html))) == 2 * n_classes


def test_few_classes_stand_in_their_order(digits):
    data, result = digits
    html = render(result, data, thumbnail, date="today")
    names = re.findall(r'<text text-anchor="end"[^>]*>(digit \d)<', html)
    assert names == [f"digit {i}" for i in range(9)]
    assert "side by side" not in html and 'type="radio"' not in html


def test_training_curves():
    data = dataset(NAMES)
    result = train(data, "dense", {"hidden": [16], "epochs": 12, "patience": 0})
    html = render(result, data, thumbnail, date="today", per_gallery=1)
    page = Page(html)
    assert "Accuracy" in page.text and "Loss" in page.text and "script" not in page.tags
    last = result.history[-1]
    assert f"validation, {100 * last['val_accuracy']:.1f}\u202f% in the last epoch" in page.text
    assert f"training, {last['loss']:.3g} in the last epoch" in page.text
    assert len(re.findall(r'<path class="raw (first|second)" d="M[^"]*"', html)) == 4
    assert "<h2>Training" not in render(train(data, "ncm"), data, thumbnail, date="today", per_gallery=1)
    assert "<h2>Thresholds" not in html


def places(path):
    return np.array([[float(v) for v in point.split()] for point in path[1:].removesuffix("h.001").split("L")])


def test_curves_are_drawn_where_their_values_are():
    """Paths against the ticks of their own axes, and the smoothed line against its definition."""
    history = [{"epoch": i + 1, "loss": 2.0 / (i + 1), "accuracy": [0.5, 0.75, 1.0][i % 3]} for i in range(9)]
    accuracy, loss = charts.training_curves(history)
    (low, _), (high, _) = accuracy.y_ticks[0], accuracy.y_ticks[-1]
    assert (accuracy.y_ticks[0][1], accuracy.y_ticks[-1][1]) == ("50\u202f%", "100\u202f%")
    (line,) = accuracy.lines
    values = 0.5 + 0.5 * (places(line.raw)[:, 1] - low) / (high - low)
    np.testing.assert_allclose(values, [epoch["accuracy"] for epoch in history], atol=0.002)
    smoothed = 0.5 + 0.5 * (places(line.path)[:, 1] - low) / (high - low)
    assert smoothed[1] == pytest.approx((0.8 * 0.5 + 0.75) / 1.8, abs=0.002)
    assert (np.diff(places(line.raw)[:, 0]) > 0).all()
    assert (np.diff(places(loss.lines[0].path)[:, 1]) > 0).all()  # down, in SVG
    assert [text for _, text in loss.y_ticks] == ["0", "0.5", "1", "1.5", "2"]
    assert charts.training_curves([]) == []
    for odd in ([{"epoch": 1, "loss": 0.0, "accuracy": 1.0}], [{"epoch": 1}, {"epoch": 2, "loss": 3.0}]):
        assert len(charts.training_curves(odd)) == 2


def test_two_classes_have_curves():
    y = np.where(DIGITS.target % 2, HOSTILE, "even")
    data = replace(dataset(NAMES), y=y)
    result = train(data, "logreg", {"C": 0.0001})
    page = Page(render(result, data, thumbnail, date="today", per_gallery=1))
    test = data.part("test")
    p = result.head.probabilities(test.X)
    classes = result.head.classes
    auc = metrics.roc_auc_score(test.y == classes[1], p[:, 1])
    assert 0.5 < auc < 1 and f"AUC {auc:.4f}" in page.text
    for i, name in enumerate(classes):
        precision = metrics.average_precision_score(test.y == name, p[:, i])
        assert f"{name}, average precision {precision:.4f}" in page.text
    one = replace(data, y=np.where(data.splits == "test", "even", y))
    assert "Thresholds" not in Page(render(result, one, thumbnail, date="today", per_gallery=1)).text


def test_a_perfect_head():
    data = dataset(NAMES)
    data.X[:] = np.eye(10)[DIGITS.target] @ np.eye(10, 64)
    page = Page(render(train(data, "ncm"), data, thumbnail, date="today"))
    assert "No test image was predicted wrong." in page.text and "Wrong:" not in page.text
