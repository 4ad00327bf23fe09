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
from heads.evaluate import wilson
from heads.learning import power_law
from heads.report import render
from heads.search import Search
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
        keys=np.array([i.to_bytes(32, "big") for i in range(n)], "S32"),
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
    return data, compare(data, Search(dict.fromkeys(["ncm", "logreg", "ridge", "knn"], ())), fewshot=(1, 5))


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
    for title in ("Regularisation", "More images", "Few images"):
        assert title not in page.text
    assert "Confidence" in page.text


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
    assert ('text-anchor="end" x="-6"' in html) == names
    assert len(html) < 1_500 * n_classes
    assert "top-5" in page.text and "mean class recall" in page.text
    assert "Classes that are confused stand side by side" in page.text
    assert page.tags.count("details") == 1 and f"The other {n_classes - 30} classes" in page.text
    assert [value for tag, name, value in page.attributes if (tag, name) == ("input", "type")] == ["radio"] * 3
    assert sum(map(int, re.findall(r"→ [^:]*: (\d+) \(", html))) == 2 * n_classes


def test_few_classes_stand_in_their_order(digits):
    data, result = digits
    html = render(result, data, thumbnail, date="today")
    names = re.findall(r'<text text-anchor="end" x="-6"[^>]*>(digit \d)<', html)
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


def test_leaderboard_rows_say_what_sets_them_apart(digits):
    data, result = digits
    first = result.leaderboard[0]
    rows = [
        first,
        first | {"class_weight": "balanced", "feature_set": f"other {HOSTILE}", "p_value": 0.25, "tied": True},
        *[first | {"p_value": 0.001, "tied": False}] * 40,
    ]
    page = Page(render(replace(result, leaderboard=rows, folds=5), data, thumbnail, date="today", per_gallery=1))
    assert f"other {HOSTILE}" in page.text and ", balanced" in page.text
    assert page.text.count("tied with the first, p = 0.25") == 1
    assert "over 5 folds" in page.text and "The other 12 heads" in page.text
    assert page.tags.count("details") == 1


def test_the_report_of_a_comparison_has_every_section(digits):
    data, result = digits
    html = render(result, data, thumbnail, date="today", per_gallery=1)
    page = Page(html)
    for title in ("Leaderboard", "Regularisation", "More images", "Few images", "Confusion", "Confidence"):
        assert f"<h2>{title}</h2>" in html
    assert "For ridge, C is 1 / (2 alpha)" in page.text
    expected = result.learning_curve["at_twice"]
    assert f"With {expected['n']:,} training images" in page.text
    assert f"{100 * expected['low']:.1f}\u202f% to {100 * expected['high']:.1f}\u202f%" in page.text
    for row in result.fewshot:
        assert f"{100 * row['val_range'][0]:.1f}–{100 * row['val_range'][1]:.1f}" in page.text


def test_confidence_is_told_as_measured(digits):
    data, _ = digits
    result = train(data, "logreg", {"C": 0.0001})
    text = Page(render(result, data, thumbnail, date="today", per_gallery=1)).text
    text = text[text.index("Answer only when sure") - 2000 : text.index("Test images drawn at random")]
    for when in ("before", "after"):
        assert f"ECE {100 * result.calibration[f'ece_{when}']:.1f}\u202f%" in text
    assert any(row["threshold"] for row in result.abstain)
    for row in result.abstain:
        assert f"{100 * row['coverage']:.1f}\u202f%" in text and f"{100 * row['accuracy']:.1f}\u202f%" in text


def test_confidence_where_there_is_little(digits):
    """A head that votes has no diagram; a target out of reach and an unanswered one have no numbers."""
    data, _ = digits
    result = train(data, "knn")
    nothing = dict.fromkeys(("threshold", "val_coverage", "coverage", "accuracy", "accuracy_ci", "n"))
    odd = (
        {"target": 0.9, **nothing},
        {"target": 0.99, **nothing, "threshold": 0.5, "val_coverage": 0.1, "coverage": 0.0, "n": 0},
    )
    page = Page(render(replace(result, abstain=odd), data, thumbnail, date="today", per_gallery=1))
    assert "shares of votes" in page.text and "ECE" not in page.text
    assert "out of reach on validation" in page.text and "no test image" in page.text


def test_a_learning_curve_of_few_points_expects_nothing(digits):
    data, result = digits
    told = result.learning_curve | {"points": result.learning_curve["points"][:2], "at_twice": None}
    page = Page(render(replace(result, learning_curve=told), data, thumbnail, date="today", per_gallery=1))
    assert "too few points" in page.text and "expected:" not in page.text
    page = Page(render(replace(result, learning_curve=None), data, thumbnail, date="today", per_gallery=1))
    assert "More images" not in page.text


def place_of(chart, x, y):
    """Where (x, y) is in a chart with a logarithmic x-axis, by its own ticks."""
    (x0, t0), (x1, t1) = chart.x_ticks[0], chart.x_ticks[-1]
    (y0, u0), (y1, u1) = chart.y_ticks[0], chart.y_ticks[-1]
    t0, t1 = (float(t.replace("k", "e3")) for t in (t0, t1))
    u0, u1 = (float(u.removesuffix("\u202f%")) / 100 for u in (u0, u1))
    return (
        pytest.approx(x0 + (x1 - x0) * np.log(x / t0) / np.log(t1 / t0), abs=0.2),
        pytest.approx(y0 + (y1 - y0) * (y - u0) / (u1 - u0), abs=0.2),
    )


def test_regularisation_paths_are_drawn_where_their_values_are():
    paths = {("logreg", False): [(1e-4, 0.7), (0.01, 0.9), (1.0, 0.85)], ("svm", True): [(1e-5, 0.8), (1e-3, 0.88)]}
    chart = charts.regularisation_path("Validation", paths, ["logreg", "svm"])
    assert [(line.name, line.colour) for line in chart.lines] == [
        ("logreg", "first"),
        ("svm, balanced", "second dashed"),
    ]
    for line, points in zip(chart.lines, paths.values(), strict=True):
        assert [dot[:2] for dot in line.dots] == [place_of(chart, *point) for point in points]
        np.testing.assert_allclose(places(line.path), [dot[:2] for dot in line.dots])
    assert [text for _, text in chart.x_ticks] == ["1e-5", "1e-4", "0.001", "0.01", "0.1", "1"]


def test_equal_shares_have_room():
    for share in (0.0, 1.0):
        chart = charts.regularisation_path("", {("svm", False): [(0.1, share), (1.0, share)]}, ["svm"])
        texts = [text for _, text in chart.y_ticks]
        assert len(set(texts)) == len(texts) > 1 and f"{100 * share:g}\u202f%" in texts


def test_learning_curves_are_drawn_where_their_values_are():
    sizes, vals = np.array([100, 200, 400, 1000]), np.array([0.7, 0.8, 0.85, 0.9])
    points = [{"n": n, "val": v, "val_ci": wilson(v, 300)} for n, v in zip(sizes.tolist(), vals.tolist(), strict=True)]
    law = power_law(sizes, 1 - vals)
    expected = {"n": 2000, "val": 1 - law.error(2000), "low": 0.88, "high": 0.95}
    chart = charts.learning_curve(points, law, expected)
    measured, beyond = chart.lines
    assert [dot[:2] for dot in measured.dots] == [place_of(chart, n, v) for n, v in zip(sizes, vals, strict=True)]
    x, low, high = (float(value) for value in re.fullmatch(r"M(\S+) (\S+)V(\S+)", beyond.raw).groups())
    assert (x, low) == place_of(chart, 2000, 0.88) and (x, high) == place_of(chart, 2000, 0.95)
    assert beyond.dots[0][:2] == place_of(chart, 2000, expected["val"])
    np.testing.assert_allclose(places(beyond.path)[-1], beyond.dots[0][:2])
    assert all(0 < x < chart.width and 0 < y < chart.height for x, y in places(beyond.path))


def test_dots_of_a_reliability_diagram_are_as_large_as_their_bins():
    bins = [{"low": 0.4, "high": 0.5, "confidence": 0.45, "accuracy": 0.75, "n": 25}]
    bins += [{"low": 0.9, "high": 1.0, "confidence": 0.95, "accuracy": 1.0, "n": 100}]
    told = {"temperature": 0.5, "ece_before": 0.1, "ece_after": 0.05, "before": bins, "after": bins[1:]}
    chart = charts.reliability_diagram(told)
    _, before, after = chart.lines
    (x0, _), (x1, _), (y0, _), (y1, _) = chart.x_ticks[0], chart.x_ticks[-1], chart.y_ticks[0], chart.y_ticks[-1]
    x, y, radius = before.dots[0]
    assert (x - x0) / (x1 - x0) == pytest.approx(0.45, abs=0.001) and (y - y0) / (y1 - y0) == pytest.approx(0.75)
    assert radius == before.dots[1][2] / 2 and len(after.dots) == 1
    assert before.name == "as fitted: ECE 10.0\u202f%" and after.name == "at temperature 0.5: ECE 5.0\u202f%"
