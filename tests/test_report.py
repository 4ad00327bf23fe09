"""The report: one file, nothing from outside, nothing that a label can smuggle in."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from featurestore.dataset import Dataset
from heads.compare import compare
from heads.report import render
from heads.train import train

HOSTILE = "<script>alert(\"1\")</script> & 'so' {{ 7 * 7 }}"
VOID = {"meta", "img", "br"}
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
    assert f"Right: 24 of {len(test) - wrong}" in html
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


@pytest.mark.parametrize("n_classes, names, numbers", [(98, True, False), (160, False, False)])
def test_many_classes(n_classes, names, numbers):
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
    Page(html)
    assert ('text-anchor="end"' in html) == names
    assert len(html) < 400_000
    width = int(re.search(r'<svg class="matrix" width="(\d+)"', html)[1])
    assert width < 1000


def test_a_perfect_head():
    data = dataset(NAMES)
    data.X[:] = np.eye(10)[DIGITS.target] @ np.eye(10, 64)
    page = Page(render(train(data, "ncm"), data, thumbnail, date="today"))
    assert "No test image was predicted wrong." in page.text and "Wrong:" not in page.text
