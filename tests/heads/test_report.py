"""The report: one file, nothing from outside, nothing that a label can smuggle in."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics
from sklearn.datasets import load_digits

from featurestore.dataset import Dataset
from heads.comparison.compare import CompareResult, compare
from heads.comparison.space import Evaluation, Search
from heads.evaluation.learning_curve import PowerLaw, power_law
from heads.evaluation.metrics import Curve, wilson
from heads.reporting import axes, charts, page, report
from heads.reporting.page import data_uri
from heads.reporting.report import Gallery, render
from heads.spec import HeadSpec
from heads.train import train
from pages import HOSTILE, Page

DIGITS = load_digits()


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
    return data, compare(data, Search(dict.fromkeys(["ncm", "logreg", "ridge", "knn"], ())), Evaluation(fewshot=(1, 5)))


def test_one_file_with_everything_in_it(digits):
    data, result = digits
    page = Page(render(result, data, Gallery(thumbnail), date="2026-01-31", head_id="head-7"))
    page.check_alone()
    assert {value[:22] for tag, name, value in page.attributes if name == "src"} == {"data:image/png;base64,"}
    for shown in ("2026-01-31", "head-7", "f" * 64, f"{100 * result.winner.test:.1f}\u202f%", HOSTILE):
        assert shown in page.text
    assert page.tags.count("rect") > 10


def test_the_numbers_are_those_of_the_test_split(digits):
    data, result = digits
    html = render(result, data, Gallery(thumbnail), date="today")
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
    html = render(result, data, Gallery(thumbnail, most=5), date="today")
    figures = re.findall(r'<figure title="file:///digits/(\d+)\.png">\s*<img src="([^"]*)".*?</figure>', html, re.S)
    assert 5 < len(figures) <= 10
    for number, source in figures:
        assert base64.b64decode(source.split(",")[1]) == thumbnail(f"{number}.png")
    assert render(result, data, Gallery(thumbnail, most=5), date="today") == html
    assert render(result, data, Gallery(thumbnail, seed=1, most=5), date="today") != html


def test_pictures_that_are_missing_or_no_raster_images(digits):
    data, result = digits
    for broken in (None, b"", b"<svg onload='alert(1)'/>"):
        page = Page(render(result, data, Gallery(lambda uri, broken=broken: broken, most=3), date="today"))
        assert "img" not in page.tags and "no image" in page.text


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
    page = Page(render(result, data, Gallery(thumbnail), date="today"))
    result.leaderboard[-1] = row
    assert f"failed: RuntimeError: {HOSTILE}" in page.text and "hidden 9→8" in page.text
    assert "a note." in page.text and "seeds from 50.0\u202f% to 75.0\u202f%" in page.text


def test_a_single_head_has_a_leaderboard_of_one_row(digits):
    data, _ = digits
    page = Page(render(CompareResult.of(train(data, HeadSpec("ncm"))), data, Gallery(thumbnail), date="today"))
    assert page.text.count("nearest class mean") == 1 and "Leaderboard" in page.text
    for title in ("Regularisation", "More images", "Few images"):
        assert title not in page.text
    assert "Confidence" in page.text


def test_the_random_batch_is_of_all_predictions(digits):
    """About as many are wrong as in the whole split, which cannot be if they were chosen by that."""
    data, result = digits
    html = render(result, data, Gallery(thumbnail, most=200), date="today")
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
    html = render(CompareResult.of(train(data, HeadSpec("ncm"))), data, Gallery(lambda uri: None), date="today")
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
    html = render(result, data, Gallery(thumbnail), date="today")
    names = re.findall(r'<text text-anchor="end" x="-6"[^>]*>(digit \d)<', html)
    assert names == [f"digit {i}" for i in range(9)]
    assert "side by side" not in html and 'type="radio"' not in html


def test_training_curves():
    data = dataset(NAMES)
    result = train(data, HeadSpec("dense", {"hidden": [16], "epochs": 12, "patience": 0}))
    html = render(CompareResult.of(result), data, Gallery(thumbnail, most=1), date="today")
    page = Page(html)
    assert "Accuracy" in page.text and "Loss" in page.text and "script" not in page.tags
    last = result.history[-1]
    assert f"validation, {100 * last['val_accuracy']:.1f}\u202f% in the last epoch" in page.text
    assert f"training, {last['loss']:.3g} in the last epoch" in page.text
    assert len(re.findall(r'<path class="raw (first|second)" d="M[^"]*"', html)) == 4
    without = CompareResult.of(train(data, HeadSpec("ncm")))
    assert "<h2>Training" not in render(without, data, Gallery(thumbnail, most=1), date="today")
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
    result = train(data, HeadSpec("logreg", {"C": 0.0001}))
    page = Page(render(CompareResult.of(result), data, Gallery(thumbnail, most=1), date="today"))
    test = data.part("test")
    p = result.head.probabilities(test.X)
    classes = result.head.classes
    auc = metrics.roc_auc_score(test.y == classes[1], p[:, 1])
    assert 0.5 < auc < 1 and f"AUC {auc:.4f}" in page.text
    for i, name in enumerate(classes):
        precision = metrics.average_precision_score(test.y == name, p[:, i])
        assert f"{name}, average precision {precision:.4f}" in page.text
    one = replace(data, y=np.where(data.splits == "test", "even", y))
    assert (
        "Thresholds" not in Page(render(CompareResult.of(result), one, Gallery(thumbnail, most=1), date="today")).text
    )


def test_a_perfect_head():
    data = dataset(NAMES)
    data.X[:] = np.eye(10)[DIGITS.target] @ np.eye(10, 64)
    page = Page(render(CompareResult.of(train(data, HeadSpec("ncm"))), data, Gallery(thumbnail), date="today"))
    assert "No test image was predicted wrong." in page.text and "Wrong:" not in page.text


def test_leaderboard_rows_say_what_sets_them_apart(digits):
    data, result = digits
    first = result.leaderboard[0]
    rows = [
        first,
        first
        | {
            "class_weight": "balanced",
            "feature_set": f"other {HOSTILE}",
            "p_value": 0.05,
            "p_corrected": 0.25,
            "tied": True,
        },
        *[first | {"p_value": 0.001, "p_corrected": 0.04, "tied": False}] * 40,
    ]
    page = Page(render(replace(result, leaderboard=rows, folds=5), data, Gallery(thumbnail, most=1), date="today"))
    assert f"other {HOSTILE}" in page.text and ", balanced" in page.text
    assert page.text.count("tied with the first, p = 0.25") == 1
    assert "over 5 folds" in page.text and "The other 12 heads" in page.text
    assert page.tags.count("details") == 1


def test_the_report_of_a_comparison_has_every_section(digits):
    data, result = digits
    html = render(result, data, Gallery(thumbnail, most=1), date="today")
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
    result = train(data, HeadSpec("logreg", {"C": 0.0001}))
    text = Page(render(CompareResult.of(result), data, Gallery(thumbnail, most=1), date="today")).text
    text = text[text.index("Answer only when sure") - 2000 : text.index("Test images drawn at random")]
    for when in ("before", "after"):
        assert f"ECE {100 * result.calibration[f'ece_{when}']:.1f}\u202f%" in text
    assert any(row["threshold"] for row in result.abstain)
    for row in result.abstain:
        assert f"{100 * row['coverage']:.1f}\u202f%" in text and f"{100 * row['accuracy']:.1f}\u202f%" in text


def test_confidence_where_there_is_little(digits):
    """A head that votes has no diagram; a target out of reach and an unanswered one have no numbers."""
    data, _ = digits
    result = train(data, HeadSpec("knn"))
    nothing = dict.fromkeys(("threshold", "val_coverage", "coverage", "accuracy", "accuracy_ci", "n"))
    odd = (
        {"target": 0.9, **nothing},
        {"target": 0.99, **nothing, "threshold": 0.5, "val_coverage": 0.1, "coverage": 0.0, "n": 0},
    )
    page = Page(render(CompareResult.of(replace(result, abstain=odd)), data, Gallery(thumbnail, most=1), date="today"))
    assert "shares of votes" in page.text and "ECE" not in page.text
    assert "out of reach on validation" in page.text and "no test image" in page.text


def test_a_learning_curve_of_few_points_expects_nothing(digits):
    data, result = digits
    told = result.learning_curve | {"points": result.learning_curve["points"][:2], "at_twice": None}
    page = Page(render(replace(result, learning_curve=told), data, Gallery(thumbnail, most=1), date="today"))
    assert "too few points" in page.text and "expected:" not in page.text
    page = Page(render(replace(result, learning_curve=None), data, Gallery(thumbnail, most=1), date="today"))
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


# -- what the page is made of ------------------------------------------------------------------------------------------


def test_intervals_share_an_axis_in_steps_of_5_percent():
    row = {
        "head": "knn",
        "params": {"k": 3, "metric": "cosine"},
        "val": 0.57,
        "val_ci": [0.52, 0.61],
        "fit_seconds": 1.5,
    }
    other = {"head": "logreg", "params": {"C": 1.0}, "val": 0.5, "val_ci": [0.43, 0.57], "fit_seconds": 0.25}
    other |= {"class_weight": "balanced", "views": 2, "feature_set": "set", "note": "a note", "val_range": [0.4, 0.6]}
    other |= {"tied": True, "p_value": 0.05, "p_corrected": 0.25}
    failed = {"head": "ncm", "params": {}, "val": None, "val_ci": None, "fit_seconds": 0.0, "error": "no luck"}
    told = report._leaderboard([row, other, failed], other)
    nothing = dict.fromkeys(("feature_set", "error", "note", "range", "tied", "p_corrected")) | {"chosen": False}
    assert (told["low"], told["high"]) == (0.4, 0.65)
    assert told["rows"] == [
        {"head": "knn", "params": "k 3", "val": 0.57, "ci": [0.52, 0.61], "places": [48.0, 84.0, 68.0], "seconds": 1.5}
        | nothing,
        {
            "head": "logreg", "params": "C 1.0, balanced, 2 views", "val": 0.5, "ci": [0.43, 0.57],
            "places": [12.0, 68.0, 40.0], "seconds": 0.25, "feature_set": "set", "error": None, "note": "a note",
            "range": [0.4, 0.6], "tied": True, "p_corrected": 0.25, "chosen": True,
        },
        {"head": "ncm", "params": "", "val": None, "ci": None, "places": None, "seconds": 0.0} | nothing
        | {"error": "no luck"},
    ]  # fmt: skip
    assert report._leaderboard([failed]) | {"rows": 0} == {"low": 0, "high": 1, "rows": 0}
    third = report._leaderboard([row | {"val_ci": [0.5, 0.65], "val": 0.55}])["rows"][0]
    assert third["places"] == [0.0, 100.0, 33.33]


def test_a_confusion_matrix_in_pixels():
    counts, names = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 4]]), np.array(["a", "bb", "c" * 20])
    told = report._matrix(counts, names)
    assert told.pop("cells") == [
        {"row": 0, "column": 0, "count": 3, "share": 0.75},
        {"row": 0, "column": 1, "count": 1, "share": 0.25},
        {"row": 2, "column": 0, "count": 2, "share": 0.3333},
        {"row": 2, "column": 2, "count": 4, "share": 0.6667},
    ]
    assert told == {
        "cell": 44, "zoomed": False, "font": 13, "axis": 12, "margin": 172, "side": 132, "numbers": True,
        "labels": ["a", "bb", "c" * 17 + "…"], "names": ["a", "bb", "c" * 20],
    }  # fmt: skip
    assert report._matrix(counts, np.array(["a", "bb", "c" * 18]))["labels"][2] == "c" * 18


@pytest.mark.parametrize(
    ("c", "cell", "font", "axis", "margin", "zoomed", "numbers"),
    [
        (12, 44, 13, 12, 55, False, True),
        (13, 44, 13, 12, 55, True, True),
        (17, 44, 13, 12, 55, True, True),
        (18, 42, 13, 12, 55, True, True),
        (27, 28, 13, 12, 55, True, True),
        (28, 27, 13, 12, 55, True, False),
        (69, 11, 11, 12, 52, True, False),
        (100, 11, 11, 18, 58, True, False),
        (400, 11, 11, 73, 113, True, False),
        (401, 4, 4, 26, 46, True, False),
    ],
)
def test_a_larger_confusion_matrix_has_smaller_cells(c, cell, font, axis, margin, zoomed, numbers):
    told = report._matrix(np.eye(c, dtype=int), np.array([f"{i:03}" for i in range(c)]))
    assert (told["cell"], told["font"], told["axis"], told["margin"]) == (cell, font, axis, margin)
    assert (told["zoomed"], told["numbers"], told["side"]) == (zoomed, numbers, c * cell)
    assert len(told["labels"]) == (c if c <= 400 else 0) and len(told["names"]) == len(told["cells"]) == c


def test_the_commonest_mistakes():
    counts, names = np.array([[5, 2, 1], [2, 2, 0], [3, 1, 96]]), np.array(["a", "b", "c"])
    pairs = [
        ("c", "a", 3, 0.03), ("b", "a", 2, 0.5), ("a", "b", 2, 0.25), ("a", "c", 1, 0.125), ("c", "b", 1, 0.01),
    ]  # fmt: skip
    expected = [dict(zip(("true", "predicted", "count", "share"), pair, strict=True)) for pair in pairs]
    assert report._confused_pairs(counts, names, 10) == expected
    assert report._confused_pairs(counts, names, 2) == expected[:2]


def test_classes_are_told_the_worst_first():
    counts = np.array([[4, 0, 0], [2, 2, 0], [0, 0, 0]])
    rows = report._class_rows(counts, np.array(["a", "b", "none"]))
    assert rows == [
        {"label": "b", "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 4},
        {"label": "a", "precision": pytest.approx(2 / 3), "recall": 1.0, "f1": pytest.approx(0.8), "support": 4},
        {"label": "none", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0},
    ]


def test_regularisation_paths_are_of_values_of_C_of_one_feature_set(monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "regularisation_path", lambda *told: drawn.append(told) or len(drawn))

    def row(head, params, val, **more):
        return {"head": head, "params": params, "val": val, **more}

    rows = [
        row("ridge", {"alpha": 50.0}, 0.5, feature_set="two"),
        row("ridge", {"alpha": 5.0}, 0.6, feature_set="two"),
        row("svm", {"C": 1.0}, 0.7, feature_set="one", class_weight="balanced"),
        row("svm", {"C": 0.1}, 0.8, feature_set="one", class_weight="balanced"),
        row("svm", {"C": 0.1}, 0.4, feature_set="one", class_weight="balanced"),  # of another parameter
        row("svm", {"C": 0.1}, 0.85, feature_set="one"),
        row("svm", {"C": 0.2}, 0.86, feature_set="one"),
        row("svm", {"C": 0.3}, 0.99, feature_set="one", views=2),
        row("svm", {"C": 0.4}, None, feature_set="one"),
        row("logreg", {"C": 3.0}, 0.9, feature_set="one"),  # alone
        row("knn", {"k": 1}, 0.9, feature_set="one"),
    ]
    assert report._regularisation_paths(rows) == [1, 2]
    svm = {("svm", False): [(0.1, 0.85), (0.2, 0.86)], ("svm", True): [(0.1, 0.8), (1.0, 0.7)]}
    assert drawn == [
        ("Validation, one", svm, ["svm", "ridge"]),
        ("Validation, two", {("ridge", False): [(0.01, 0.5), (0.1, 0.6)]}, ["svm", "ridge"]),
    ]
    assert list(drawn[0][1]) == list(svm)
    drawn.clear()
    report._regularisation_paths([row("logreg", {"C": C}, 0.5) for C in (1.0, 0.5)])
    assert drawn == [("Validation", {("logreg", False): [(0.5, 0.5), (1.0, 0.5)]}, ["logreg"])]
    assert report._regularisation_paths([row("logreg", {"C": 1.0}, 0.5)]) == []


def test_few_shots_in_a_table():
    rows = [
        {"head": head, "k": k, "val": val} for head, k, val in (("ncm", 5, 0.5), ("knn", 1, 0.25), ("ncm", 1, 0.75))
    ]
    told = report._fewshot(rows)
    assert told == {
        "ks": [1, 5], "best": {1: 0.75, 5: 0.5}, "rows": [("ncm", [rows[2], rows[0]]), ("knn", [rows[1], None])],
    }  # fmt: skip


def test_what_is_told_of_a_learning_curve(monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "learning_curve", lambda *told: drawn.append(told))
    points = [{"n": n, "val": val, "val_ci": [0.1, 0.9]} for n, val in ((10, 0.5), (20, 0.6), (40, 0.65), (80, 0.7))]
    told = {"head": "knn", "params": {"k": 3, "metric": "cosine"}, "points": points, "at_twice": None}
    made = report._learning_curve(told)
    assert made == {"head": "knn, k 3", "chart": None, "last": points[-1], "expected": None}
    assert drawn == [(points, None, None)]
    expected = {"n": 160, "val": 0.75, "low": 0.7, "high": 0.8}
    assert report._learning_curve(told | {"at_twice": expected})["expected"] == expected
    law = power_law(np.array([10, 20, 40, 80]), np.array([0.5, 0.4, 0.35, 0.3]))
    assert drawn[1][1] == pytest.approx(tuple(law)) and drawn[1][2] == expected
    assert report._learning_curve(told | {"head": "ncm", "params": {}})["head"] == "ncm"
    assert report._learning_curve(None) is report._learning_curve(told | {"points": []}) is None


def test_pictures_are_raster_images_inside_the_page():
    for start, kind in ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp")):
        assert data_uri(start + b"more") == f"data:image/{kind};base64,{base64.b64encode(start + b'more').decode()}"
    assert data_uri(b"<svg/>") is data_uri(b"") is data_uri(None) is None


def test_galleries_are_drawn_from_all_and_the_wrong_ones(digits):
    data, _ = digits
    test = data.part("test").take(np.arange(40))
    predicted, confidence = test.y.copy(), np.random.default_rng(0).random(40)
    predicted[10:] = "digit 3"
    wrong = np.flatnonzero(predicted != test.y)
    thumbnails = []
    shown = Gallery(lambda uri: thumbnails.append(uri) or b"GIF8" + uri.encode(), seed=7, most=12)
    batch, mistakes = report._galleries(test, predicted, confidence, shown)
    assert (batch["title"], batch["total"], len(batch["pictures"])) == ("Random batch", 40, 12)
    assert (mistakes["title"], mistakes["total"], len(mistakes["pictures"])) == ("Wrong", len(wrong), 12)
    assert [picture["uri"] for one in (batch, mistakes) for picture in one["pictures"]] == thumbnails
    for gallery in (batch, mistakes):
        rows = [list(test.uris).index(picture["uri"]) for picture in gallery["pictures"]]
        assert len(set(rows)) == 12
        for row, picture in zip(rows, gallery["pictures"], strict=True):
            assert picture == {
                "uri": test.uris[row], "name": test.uris[row].rpartition("/")[2],
                "source": data_uri(b"GIF8" + test.uris[row].encode()), "true": test.y[row],
                "predicted": predicted[row], "probability": confidence[row],
            }  # fmt: skip
        probabilities = [picture["probability"] for picture in gallery["pictures"]]
        assert (probabilities == sorted(probabilities, reverse=True)) == (gallery is mistakes)
        assert gallery is batch or set(rows) <= set(wrong)
    everything = report._galleries(test, predicted, confidence, Gallery(lambda uri: None, seed=7, most=1000))
    assert [len(gallery["pictures"]) for gallery in everything] == [40, len(wrong)]


@pytest.mark.parametrize(("n_classes", "pairs"), [(30, 10), (31, 40)])
def test_up_to_30_classes_and_rows_stand_open_and_in_order(n_classes, pairs):
    rng = np.random.default_rng(0)
    y = np.arange(n_classes * 40) % n_classes
    splits = np.array(["train", "val", "test", "test"])[np.arange(len(y)) // n_classes % 4]
    uris, names = np.array([f"{i}.png" for i in y]), np.array([f"kind {i:02d}" for i in range(n_classes)])
    X = rng.normal(size=(len(y), 3)).astype(np.float32)
    data = Dataset("many", "f" * 64, X, names[y], y, uris, splits)
    result = train(data, HeadSpec("ncm"))
    page = Page(html := render(CompareResult.of(result), data, Gallery(lambda uri: None, seed=5, most=3), date="today"))
    told = re.findall(r'<text text-anchor="end" x="-6"[^>]*>(kind \d\d)<', html)
    assert sorted(told) == names.tolist() and (told == names.tolist()) == (n_classes == 30)
    assert ("side by side" in page.text) == (n_classes == 31) == ("The other 1 classes" in page.text)
    confused = html[html.index("<h3>Most confused</h3>") :]
    assert confused[: confused.index("</table>")].count("<tr>") == 1 + pairs
    assert "with seed 5" in page.text and page.text.count("no image") == 6
    rows = [result.row()] * n_classes
    board = CompareResult(rows, result)
    page = Page(render(board, data, Gallery(lambda uri: None, most=1), date="today"))
    assert ("The other 1 heads" in page.text) == (n_classes == 31) and "“Tied”" not in page.text
    assert f"on {len(data.part('val')):,} validation images" in page.text.replace("\n", " ")


def test_a_page_tells_apart_the_baseline_notes_and_tied_rows(digits):
    data, result = digits
    winner = replace(result.winner, notes=("a note",), baseline=0.123)
    board = [result.leaderboard[0], result.leaderboard[1] | {"tied": True, "p_value": 0.5, "p_corrected": 0.5}]

    def page_of(**change):
        changed = replace(result, winner=winner, leaderboard=board, **change)
        return Page(render(changed, data, Gallery(thumbnail, most=1), date="today"))

    page, named, taken = page_of(simplest=0), page_of(simplest=1), page_of(simplest=1, chosen=1)
    assert "simple" not in page.text and "Only the first row was scored" in page.text
    assert f"tied with the first is {board[1]['head']}" in named.text and "--prefer simple keeps it" in named.text
    assert "The coloured row is the simplest" in taken.text and "Only the coloured row was scored" in taken.text
    assert "12.3\u202f%" in page.text and "a note" in page.text and "“Tied” is a row" in page.text
    assert "For ridge, C" not in page.text and "over 5 folds" not in page.text


# -- charts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "steps"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 2, [0, 0.5, 1.0, 1.5, 2.0]),
        (0.03, 0.97, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.71, 0.79, [0.7, 0.72, 0.74, 0.76, 0.78, 0.8]),
        (0, 5, [0, 1, 2, 3, 4, 5]),
        (0, 5.1, [0, 2, 4, 6]),
        (1, 12, [0, 5, 10, 15]),
        (1, 60, [0, 20, 40, 60]),
        (0.5, 1.0, [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        (0, 10.5, [0, 5, 10, 15]),
        (0, 30, [0, 10, 20, 30]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (3, 3, [3, 3.0000000002]),
    ],
)
def test_ticks_are_round_numbers_around_the_values(low, high, steps):
    assert axes.round_steps(low, high) == pytest.approx(steps, abs=1e-12)


@pytest.mark.parametrize(
    ("low", "high", "names"),
    [
        (0.9, 11, ["1", "2", "5", "10"]),
        (1, 100, ["1", "2", "5", "10", "20", "50", "100"]),
        (1, 200, ["1", "2", "5", "10", "20", "50", "100", "200"]),
        (1, 500, ["1", "10", "100"]),
        (1e-6, 1e1, ["1e-6", "1e-5", "1e-4", "0.001", "0.01", "0.1", "1", "10"]),
        (1e-6, 1e2, ["1e-6", "1e-4", "0.01", "1", "100"]),
        (150, 900, ["200", "500"]),
        (900, 2e6, ["1k", "10k", "100k", "1M"]),
        (1.5e9, 2e10, ["2G", "5G", "10G", "20G"]),
        (9e-13, 2e-9, ["1e-12", "1e-11", "1e-10", "1e-9"]),
    ],
)
def test_ticks_of_magnitudes(low, high, names):
    assert [axes.short(value) for value in axes.magnitudes(low, high)] == names


def test_places_in_a_chart():
    """The box of the axes: its ends are the ends of the ranges, y grows upwards."""
    roc, curve = (
        Curve(np.array([0, 0.5, 1]), np.array([0, 1, 1]), 0.75),
        Curve(np.array([0.5, 1]), np.array([1, 0.5]), 0.7),
    )
    first, second = charts.two_class_curves(roc, {"a": curve, "b": roc})
    assert (first.width, first.height, first.box) == (440, 260, (52, 10, 414, 220))
    assert (first.title, first.x_name) == ("ROC: true positive rate", "false positive rate")
    assert (second.title, second.x_name) == ("Precision", "recall")
    shares = ["0\u202f%", "25\u202f%", "50\u202f%", "75\u202f%", "100\u202f%"]
    for chart in (first, second):
        assert chart.x_ticks == list(zip([52, 142.5, 233, 323.5, 414], shares, strict=True))
        assert chart.y_ticks == list(zip([220, 167.5, 115, 62.5, 10], shares, strict=True))
    assert [(line.name, line.colour, line.path) for line in first.lines] == [
        ("AUC 0.7500", "first", "M52 220L233 10L414 10h.001"),
        ("chance", "chance", "M52 220L414 10h.001"),
    ]
    assert [(line.name, line.colour, line.path) for line in second.lines] == [
        ("a, average precision 0.7000", "first", "M233 10L414 115h.001"),
        ("b, average precision 0.7500", "second", "M52 220L233 10L414 10h.001"),
    ]


def test_long_curves_are_thinned_evenly_and_keep_their_ends():
    x = np.arange(10_000) / 9999
    points = charts._points(Curve(x, 1 - x, 0.5))
    assert len(points) == 400 and points[0] == (0, 1) and points[-1] == (1, 0)
    assert np.ptp(np.diff([x for x, _ in points])) <= 1.01 / 9999
    assert len(charts._points(Curve(x[:400], x[:400], 0.5))) == 400


def test_training_curves_say_what_they_are():
    history = [
        {"epoch": i + 1, "loss": 1.0 / (i + 1), "accuracy": 0.25 + i / 4, "val_loss": 1.5, "val_accuracy": 0.5}
        for i in range(3)
    ]
    accuracy, loss = charts.training_curves(history)
    assert (accuracy.title, accuracy.x_name, loss.title, loss.x_name) == ("Accuracy", "epoch", "Loss", "epoch")
    assert [(line.name, line.colour) for line in accuracy.lines] == [
        ("training, 75.0\u202f% in the last epoch", "first"),
        ("validation, 50.0\u202f% in the last epoch", "second"),
    ]
    assert [line.name for line in loss.lines] == [
        "training, 0.333 in the last epoch",
        "validation, 1.5 in the last epoch",
    ]
    assert accuracy.x_ticks == loss.x_ticks == [(52, "1"), (233, "2"), (414, "3")]
    assert [text for _, text in accuracy.y_ticks] == [f"{share}\u202f%" for share in (20, 40, 60, 80, 100)]
    assert loss.lines[1].raw == loss.lines[1].path == "M52 10L233 10L414 10h.001"
    smoothed = places(accuracy.lines[0].path)[:, 1]
    values = [0.25, (0.8 * 0.25 + 0.5) / 1.8, (0.64 * 0.25 + 0.8 * 0.5 + 0.75) / 2.44]
    np.testing.assert_allclose(smoothed, [220 - 210 * (value - 0.2) / 0.8 for value in values], atol=0.06)
    nothing = charts.training_curves([{"epoch": 1}, {"epoch": 2}])[0]
    assert [text for _, text in nothing.y_ticks] == [f"{share}\u202f%" for share in (0, 20, 40, 60, 80, 100)]
    (one, _) = charts.training_curves(history[:1])
    assert one.x_ticks == [(52, "1"), (414, "2")] and one.lines[0].path.startswith("M52 ")


def test_colours_repeat_after_the_fourth_head():
    heads = ["a", "b", "c", "d", "e"]
    paths = {(head, False): [(1.0, 0.5), (10.0, 0.6)] for head in heads}
    chart = charts.regularisation_path("Validation", paths, heads)
    assert [line.colour for line in chart.lines] == ["first", "second", "third", "fourth", "first"]
    assert {dot[2] for line in chart.lines for dot in line.dots} == {3.5} and chart.x_name == "C"
    (x0, *_), (x1, *_) = chart.lines[0].dots  # 4 % of the magnitudes are left free on either side
    assert (x0, x1) == (round(52 + 362 * 0.04 / 1.08, 1), round(52 + 362 * 1.04 / 1.08, 1))
    alone = charts.regularisation_path("Validation", {("a", False): [(3.0, 0.5)]}, heads)
    assert alone.lines[0].dots[0][0] == 233  # in the middle, from half to twice its C
    assert [text for _, text in alone.x_ticks] == ["2", "5"]
    assert [text for _, text in alone.y_ticks] == ["48\u202f%", "48.5\u202f%", "49\u202f%", "49.5\u202f%", "50\u202f%"]


def test_the_dots_of_the_largest_and_the_smallest_bins():
    bins = [{"confidence": 0.5, "accuracy": 0.5, "n": n} for n in (1, 6400, 1600)]
    told = {"temperature": 1.234, "ece_before": 0.1, "ece_after": 0.05, "before": bins, "after": bins}
    line = charts.reliability_diagram(told).lines[1]
    assert line.dots == [(233, 115, 1.0), (233, 115, 8.0), (233, 115, 4.0)] and line.colour == "second"
    chart = charts.reliability_diagram(told)
    assert [one.name for one in chart.lines] == [
        "as it should be", "as fitted: ECE 10.0\u202f%", "at temperature 1.23: ECE 5.0\u202f%",
    ]  # fmt: skip
    assert (chart.lines[0].path, chart.lines[2].colour) == ("M52 220L414 10h.001", "first")
    assert (chart.title, chart.x_name) == ("Accuracy of predictions", "their probability")


def test_a_learning_curve_without_a_law_joins_its_points():
    points = [{"n": n, "val": val, "val_ci": (val - 0.1, val + 0.1)} for n, val in ((10, 0.5), (100, 0.7))]
    chart = charts.learning_curve(points, None, None)
    (line,) = chart.lines
    assert (line.name, line.colour, chart.title, chart.x_name) == ("measured", "first", "Validation", "training images")
    places_of = [dot[:2] for dot in line.dots]
    assert line.path == "M{:g} {:g}L{:g} {:g}h.001".format(*places_of[0], *places_of[1])
    assert [text for _, text in chart.y_ticks] == ["40\u202f%", "50\u202f%", "60\u202f%", "70\u202f%", "80\u202f%"]
    assert places_of == [(65.4, 167.5), (400.6, 62.5)]
    assert line.raw == "M65.4 220V115M400.6 115V10" and {dot[2] for dot in line.dots} == {3.5}
    law = PowerLaw(0.0, 1.0, 0.25)
    expected = {"n": 1000, "val": 0.8, "low": 0.75, "high": 0.85}
    measured, beyond = charts.learning_curve(points, law, expected).lines
    assert measured.path == "" and beyond.name == "expected: 80.0\u202f% at 1,000 images"
    assert beyond.colour == "second dashed" and len(places(beyond.path)) == 60 and beyond.dots[0][2] == 3.5
    first = places(beyond.path)[0]
    chart = charts.learning_curve(points, law, expected)
    assert tuple(first) == place_of(chart, 10, 1 - 10**-0.25)


def test_a_template_is_compiled_once():
    """To compile it takes longer than to render it."""
    assert page.template("report.html.j2") is page.template("report.html.j2")
