"""The report of a comparison or a training: one HTML file without external assets."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from featurestore.dataset import Dataset
from heads import registry
from heads.base import Head
from heads.comparison.compare import CompareResult
from heads.evaluation import metrics
from heads.evaluation.learning_curve import power_law
from heads.reporting import charts
from heads.reporting.page import Axis, Thumbnail, describe, picture, template

TEMPLATE = "report.html.j2"
ALPHABETICAL_CLASSES = 30  # with more, the confusion matrix is ordered by confusion
LABELLED_CLASSES = 400  # with more, the confusion matrix has no class names
ROWS_SHOWN = 30  # of the leaderboard and of the table of classes; a click shows the rest


@dataclass(frozen=True)
class Gallery:
    """The images of a report: a random batch, and wrong predictions.

    Attributes:
        thumbnail: returns small PNG, JPEG, GIF or WebP bytes for a URI, or None if there is no thumbnail.
        seed: of the random choice.
        most: the most images in each of the two.
    """

    thumbnail: Thumbnail
    seed: int = 0
    most: int = 24


def render(result: CompareResult, dataset: Dataset, gallery: Gallery, *, date: str, head_id: str = "") -> str:
    """Return the report as HTML.

    Args:
        result: the leaderboard and the winner.
        dataset: the one that the result was made from; the report shows its test split.
        gallery: which images to show.
        date: of the run, as text.
        head_id: of the winner, as text.
    """
    winner, rows = result.winner, result.leaderboard
    simplest = rows[result.simplest]
    test = dataset.part("test")
    predicted, probabilities = winner.head.predict(test.X), winner.head.probabilities(test.X)
    labels = np.union1d(winner.head.classes, test.y)
    matrix = metrics.confusion(test.y, predicted, labels)
    many = len(labels) > ALPHABETICAL_CLASSES
    order = metrics.confusion_order(matrix) if many else np.arange(len(labels))
    return template(TEMPLATE).render(
        winner=winner,
        params=describe(rows[result.chosen]),
        about=registry.family(winner.head.family).about,
        date=date,
        head_id=head_id,
        leaderboard=[
            _leaderboard(some, rows[result.chosen]) for some in (rows[:ROWS_SHOWN], rows[ROWS_SHOWN:]) if some
        ],
        chosen=result.chosen,
        simpler=f"{simplest['head']} {describe(simplest)}".strip() if result.simplest else "",
        families={row["head"] for row in rows},
        any_tied=any(row.get("tied") for row in rows),
        folds=result.folds,
        paths=_regularisation_paths(rows),
        reliability=[charts.reliability_diagram(winner.calibration)] if winner.calibration else [],
        learning=_learning_curve(result.learning_curve),
        fewshot=_fewshot(result.fewshot or []),
        curves=charts.training_curves(winner.history),
        smoothing=charts.SMOOTHING,
        matrix={"by_confusion": many, **_matrix(matrix[np.ix_(order, order)], labels[order])},
        two_class=_two_class_curves(test, winner.head) if len(labels) == 2 else [],
        pairs=_confused_pairs(matrix, labels, most=40 if many else 10),
        classes=_class_rows(matrix, labels),
        rows_shown=ROWS_SHOWN,
        seed=gallery.seed,
        galleries=_galleries(test, predicted, probabilities.max(axis=1), gallery),
    )


def _leaderboard(rows: list[dict[str, Any]], chosen: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return rows for the table, and the ends of the axis that their intervals share, multiples of 5 %."""
    axis = Axis.of(row["val_ci"] for row in rows if row["val_ci"])
    return {
        "low": axis.low,
        "high": axis.high,
        "rows": [
            {
                "head": row["head"],
                "params": describe(row),
                "feature_set": row.get("feature_set"),
                "val": row["val"],
                "ci": row["val_ci"],
                "places": axis.places(row["val"], row["val_ci"]) if row["val_ci"] else None,
                "seconds": row["fit_seconds"],
                "error": row.get("error"),
                "note": row.get("note"),
                "range": row.get("val_range"),
                "tied": row.get("tied"),
                "p_corrected": row.get("p_corrected"),
                "chosen": row is chosen,
            }
            for row in rows
        ],
    }


def _regularisation_paths(rows: list[dict[str, Any]]) -> list[charts.Chart]:
    """Return a chart per feature set, without those where no family was fitted with several values of C."""
    paths: dict[str, dict[tuple[str, bool], dict[float, float]]] = {}
    families = list(registry.FAMILIES)
    for row in sorted(rows, key=lambda row: (families.index(row["head"]), bool(row.get("class_weight")))):
        C = registry.weight_of_loss(row["head"], row["params"])
        if C is None or row["val"] is None or row.get("views"):
            continue
        path = paths.setdefault(row.get("feature_set") or "", {})
        points = path.setdefault((row["head"], bool(row.get("class_weight"))), {})
        points[C] = max(points.get(C, 0.0), row["val"])
    longer = {
        name: {key: sorted(points.items()) for key, points in path.items() if len(points) > 1}
        for name, path in sorted(paths.items())
    }
    heads = list(dict.fromkeys(head for path in longer.values() for head, _ in path))
    return [
        charts.regularisation_path(f"Validation, {name}" if name else "Validation", path, heads)
        for name, path in longer.items()
        if path
    ]


def _learning_curve(told: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the chart of a learning curve and the score it expects; None if it has no points."""
    if told is None or not told["points"]:
        return None
    points, expected = told["points"], told["at_twice"]
    law = power_law(np.array([p["n"] for p in points]), np.array([1 - p["val"] for p in points])) if expected else None
    return {
        "head": ", ".join(filter(None, [told["head"], describe(told)])),
        "chart": charts.learning_curve(points, law, expected),
        "last": points[-1],
        "expected": expected,
    }


def _fewshot(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a table with a row per family and a column per k."""
    cells = {(row["head"], row["k"]): row for row in rows}
    ks = sorted({row["k"] for row in rows})
    best = {k: max(row["val"] for row in rows if row["k"] == k) for k in ks}
    heads = list(dict.fromkeys(row["head"] for row in rows))
    return {"ks": ks, "best": best, "rows": [(head, [cells.get((head, k)) for k in ks]) for head in heads]}


def _matrix(matrix: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return the geometry, in pixels, of a confusion matrix whose colours are shares of the true class."""
    c = len(labels)
    labelled = c <= LABELLED_CLASSES
    cell = min(44, max(11 if labelled else 4, 760 // c))
    font = min(13, cell)
    longest = min(max(map(len, labels)), 18) if labelled else 0
    axis = max(12, c * cell // 60)  # font size of the axis names, legible even if the whole matrix is scaled down
    margin = 20 + axis + longest * font * 0.6
    totals = np.maximum(matrix.sum(axis=1), 1)
    return {
        "cell": cell,
        "zoomed": c > 12,
        "font": font,
        "axis": axis,
        "margin": round(margin),
        "side": c * cell,
        "numbers": cell >= 28,
        "labels": [_shorten(label, 18) for label in labels] if labelled else [],
        "names": labels.tolist(),
        "cells": [
            {
                "row": int(row),
                "column": int(column),
                "count": int(matrix[row, column]),
                "share": round(matrix[row, column] / totals[row], 4),
            }
            for row, column in np.argwhere(matrix)
        ],
    }


def _shorten(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _two_class_curves(test: Dataset, head: Head) -> list[charts.Chart]:
    """Return charts of the second class's ROC and of both classes' precision and recall; none if test has one class."""
    positive = test.y == head.classes[1]
    if positive.all() or not positive.any():
        return []
    scores = head.scores(test.X)
    margin = scores[:, 1].astype(np.float64) - scores[:, 0]
    by_class = {
        str(head.classes[0]): metrics.precision_recall(~positive, -margin),
        str(head.classes[1]): metrics.precision_recall(positive, margin),
    }
    return charts.two_class_curves(metrics.roc(positive, margin), by_class)


def _confused_pairs(matrix: np.ndarray, labels: np.ndarray, most: int) -> list[dict[str, Any]]:
    """Return the most frequent confusions, sorted by count, then by share of the true class."""
    totals = matrix.sum(axis=1)
    pairs: list[dict[str, Any]] = [
        {
            "true": str(labels[row]),
            "predicted": str(labels[column]),
            "count": int(matrix[row, column]),
            "share": float(matrix[row, column] / totals[row]),
        }
        for row, column in np.argwhere(matrix)
        if row != column
    ]
    return sorted(pairs, key=lambda pair: (-pair["count"], -pair["share"]))[:most]


def _class_rows(matrix: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Return the scores of each class, the lowest F1 first, classes without test rows last."""
    scores = metrics.per_class(matrix)
    columns = {name: values.tolist() for name, values in asdict(scores).items()}
    order = sorted(range(len(labels)), key=lambda i: (scores.support[i] == 0, scores.f1[i]))
    return [{"label": str(labels[i]), **{name: values[i] for name, values in columns.items()}} for i in order]


def _galleries(test: Dataset, predicted: np.ndarray, confidence: np.ndarray, shown: Gallery) -> list[dict[str, Any]]:
    """Return two galleries: random predictions, and random wrong predictions with the most confident first."""
    draw = np.random.default_rng(shown.seed)
    galleries = []
    for title, rows in (("Random batch", np.arange(len(test))), ("Wrong", np.flatnonzero(predicted != test.y))):
        chosen = draw.choice(rows, min(shown.most, len(rows)), replace=False)
        if title == "Wrong":
            chosen = chosen[np.argsort(-confidence[chosen], kind="stable")]
        pictures = [
            {
                **picture(str(test.uris[row]), shown.thumbnail),
                "true": str(test.y[row]),
                "predicted": str(predicted[row]),
                "probability": float(confidence[row]),
            }
            for row in chosen
        ]
        galleries.append({"title": title, "total": len(rows), "pictures": pictures})
    return galleries
