"""The report of a night of a scheduled retrain: one HTML file without external assets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from operator import itemgetter
from typing import Any

from heads.reporting import charts
from heads.reporting.page import Axis, Thumbnail, describe, percent, picture, template

TEMPLATE = "night.html.j2"
MOST = 16  # pictures per check, and per kind of disagreement
STATUSES = {"block": "blocked", "warn": "warning", "ok": "passed", "off": "off"}  # in words, the worst first
METRICS = {"top1": "top-1", "macro_f1": "macro F1", "mean_recall": "mean class recall"}
RULES = {  # how often the margin the interval must lie above, and whether the difference must exceed the Ladder's step
    "better": (1, True),
    "not-worse": (-1, False),
}
VERDICTS = {
    "promoted": "A new champion",
    "kept": "The champion stays",
    "blocked": "Blocked",
    "unchanged": "Nothing changed",
    "planned": "A plan",
}
SIZES = {"train": "training images", "val": "validation images", "test": "test images", "classes": "classes"}

Outcome = Mapping[str, Any]

CHECKS: dict[str, tuple[str, Callable[[float], str]]] = {  # in words, and how their values and limits are written
    "failures": ("New files that failed", percent),
    "small_classes": ("Training images of the smallest class", "{:,}".format),
    "appeared": ("Classes that appeared", "{:,}".format),
    "vanished": ("Classes that vanished", "{:,}".format),
    "flips": ("Images with another label", percent),
    "drift": ("New images unlike the training images", "{:.3f}".format),
    "copies": ("Near-copies of training images in test", percent),
    "test_shrank": ("Test images that are gone", percent),
}


@dataclass(frozen=True)
class Disagreement:
    """A test image to which the two heads give different labels."""

    uri: str
    true: str
    champion: str
    challenger: str

    @property
    def right(self) -> str:
        """Which head is right: challenger, champion or neither."""
        return {self.champion: "champion", self.challenger: "challenger"}.get(self.true, "neither")


@dataclass(frozen=True)
class Disagreements:
    """How many test images the two heads label differently, by which of them is right; ``shown`` are some of them."""

    challenger_right: int = 0
    champion_right: int = 0
    both_wrong: int = 0
    shown: Sequence[Disagreement] = ()


@dataclass(frozen=True)
class NightPage:
    """What the report of a night shows.

    Attributes:
        outcome: what ``penult retrain --json`` prints.
        earlier: the outcomes of earlier nights of the recipe.
        disagreements: of champion and challenger; None if they were not compared.
        examples: by the name of a check, the URIs of the images that moved it; all are listed, some are shown.
        thumbnail: returns small PNG, JPEG, GIF or WebP bytes for a URI, or None if there is no thumbnail.
    """

    outcome: Outcome
    earlier: Sequence[Outcome] = ()
    disagreements: Disagreements | None = None
    examples: Mapping[str, Sequence[str]] = field(default_factory=dict)
    thumbnail: Thumbnail = lambda uri: None


def render(night: NightPage) -> str:
    """Return the report as HTML."""
    outcome, test = night.outcome, night.outcome.get("test") or {}
    earlier = sorted((one for one in night.earlier if one["date"] != outcome["date"]), key=itemgetter("date"))
    nights = sorted([*earlier, outcome], key=itemgetter("date"))
    metric = next((one["test"]["metric"] for one in (outcome, *reversed(earlier)) if one.get("test")), "")
    words = METRICS.get(metric, "score")
    checks = _checks(night)
    return template(TEMPLATE).render(
        outcome=outcome,
        verdict=_verdict(outcome),
        in_use=_in_use(outcome),
        metric=words,
        checks=checks,
        statuses=[(count, word) for status, word in STATUSES.items() if (count := _number(checks, status))],
        heads=_heads(outcome),
        difference=_difference(outcome.get("difference"), test),
        test=test,
        ages=_ages(test) if outcome.get("champion") else [],
        charts=_charts(nights, metric, words),
        nights=[_row(one) for one in reversed(nights)],
        embed=outcome.get("embed") or {},
        labels=outcome.get("labels") or {},
        sizes=_sizes(outcome, earlier),
        disagreements=_disagreements(night),
        seconds=_seconds(outcome.get("seconds") or {}),
    )


def _verdict(outcome: Outcome) -> str:
    return VERDICTS.get(outcome["decision"], outcome["decision"].capitalize())


def _in_use(outcome: Outcome) -> Outcome | None:
    """Return the head that is the champion after the night; None if there is none."""
    return outcome.get("challenger" if outcome["decision"] == charts.PROMOTED else "champion")


def _checks(night: NightPage) -> list[dict[str, Any]]:
    """Return the rows of the table of checks, the worst first, with pictures of what moved a warning or a block."""
    rows = []
    for check in night.outcome.get("checks") or []:
        title, text = CHECKS.get(check["name"], (check["name"], "{:.4g}".format))
        status = "off" if check["level"] == "off" else check["status"]
        uris = list(night.examples.get(check["name"], ())) if status in ("block", "warn") else []
        pictures = [picture(uri, night.thumbnail) for uri in uris[:MOST]]
        shown = len(pictures) if any(one["source"] for one in pictures) else 0  # a failed file has none
        rows.append(
            {
                "name": check["name"],
                "title": title,
                "level": check["level"],
                "status": status,
                "word": STATUSES[status],
                "reason": check["reason"],
                "value": None if check["value"] is None else text(check["value"]),
                "limit": None if check["limit"] is None else text(check["limit"]),
                "images": len(uris),
                "pictures": pictures[:shown],
                "others": uris[shown:],
            }
        )
    return sorted(rows, key=lambda row: list(STATUSES).index(row["status"]))


def _number(checks: Sequence[Mapping[str, Any]], status: str) -> int:
    return sum(check["status"] == status for check in checks)


def _heads(outcome: Outcome) -> dict[str, Any]:
    """Return the table of the two heads: its rows, and the axis that their intervals share."""
    heads = [(role, outcome[role]) for role in ("champion", "challenger") if outcome.get(role)]
    axis = Axis.of(head["ci"] for _, head in heads if head["ci"])
    rows = [
        {
            **head,
            "role": role,
            "words": ", ".join(filter(None, [head["head"], describe(head)])) if "head" in head else "",
            "places": axis.places(head["score"], head["ci"]) if head["ci"] else None,
            "in_use": head is _in_use(outcome),
        }
        for role, head in heads
    ]
    return {"axis": axis, "rows": rows, "scored": any(row["places"] for row in rows)}


def _difference(told: Mapping[str, Any] | None, test: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the difference of the two heads, with its chart and the threshold of the rule; None if there is none."""
    if told is None:
        return None
    sign, steps = RULES[test["rule"]]
    threshold, step = sign * test["margin"], told["step"] if steps else None
    chart = charts.difference(told["value"], told["ci"], threshold, step)
    return {**told, "threshold": threshold, "step": step, "chart": chart}


def _ages(test: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the scores apart, on test images that were there when the champion was made, and on those since."""
    rows = []
    for key, title in (("old", "there when the champion was made"), ("new", "came since")):
        part = test.get(key)
        if part and part["n"]:
            both = None not in (part["champion"], part["challenger"])
            rows.append({**part, "title": title, "gain": part["challenger"] - part["champion"] if both else None})
    return rows


def _charts(nights: Sequence[Outcome], metric: str, words: str) -> list[charts.Chart]:
    """Return charts of scores and of the data over the nights; a chart of a single night says nothing."""
    told = [_night(outcome, metric) for outcome in nights]
    drawn = []
    if sum(night.score is not None for night in told) > 1:
        drawn.append(charts.scores_over_nights(told, words))
    if sum(night.images is not None for night in told) > 1:
        drawn.append(charts.images_over_nights(told))
    return drawn


def _night(outcome: Outcome, metric: str) -> charts.Night:
    """Return a night for the charts; a score of another metric is none."""
    head = _in_use(outcome) or {}
    known = (outcome.get("test") or {}).get("metric", metric) == metric
    return charts.Night(
        date.fromisoformat(outcome["date"]),
        outcome["decision"],
        score=head.get("score") if known else None,
        ci=head.get("ci") if known else None,
        images=(outcome.get("n") or {}).get("train"),
    )


def _row(outcome: Outcome) -> dict[str, Any]:
    """Return a night for the table of nights."""
    head = _in_use(outcome) or {}
    return {
        "date": outcome["date"],
        "verdict": _verdict(outcome),
        "score": head.get("score"),
        "ci": head.get("ci"),
        "new": (outcome.get("embed") or {}).get("new"),
        "images": (outcome.get("n") or {}).get("train"),
    }


def _sizes(outcome: Outcome, earlier: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return how many images each split has, and how many classes there are, beside those of the night before."""
    now = outcome.get("n") or {}
    known = [one["n"] for one in earlier if one.get("n") and one["date"] < outcome["date"]]
    before = known[-1] if known else {}
    return [{"title": title, "now": now[key], "before": before.get(key)} for key, title in SIZES.items() if key in now]


def _disagreements(night: NightPage) -> dict[str, Any] | None:
    """Return how often the heads disagree, and pictures, by which of them is right; None if they were not compared."""
    told = night.disagreements
    if told is None:
        return None
    counts = {"challenger": told.challenger_right, "champion": told.champion_right, "neither": told.both_wrong}
    groups = [
        {
            "right": right,
            "count": count,
            "pictures": [
                {**asdict(one), **picture(one.uri, night.thumbnail)}
                for one in [one for one in told.shown if one.right == right][:MOST]
            ],
        }
        for right, count in counts.items()
    ]
    return {"total": sum(counts.values()), "groups": groups}


def _seconds(stages: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the rows of the table of stages, with bars relative to the longest; the total, if given, has none."""
    longest = max((took for stage, took in stages.items() if stage != "total"), default=0.0)
    rows = sorted(stages.items(), key=lambda row: row[0] == "total")
    return [
        {
            "stage": stage,
            "took": duration(took),
            "bar": None if stage == "total" or not longest else round(100 * took / longest, 2),
        }
        for stage, took in rows
    ]


def duration(seconds: float) -> str:
    """Return a time as text: 0.4 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 59.95:
        return f"{seconds:.1f}\u202fs"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}\u202fmin {rest}\u202fs"
    return f"{minutes // 60}\u202fh {minutes % 60}\u202fmin"
