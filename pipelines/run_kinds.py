"""The table of run kinds: how to summarise the result of each job in one line, and what its run leaves in the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunKind:
    """One kind of run.

    Attributes:
        name: the kind as it stands in a run's id and record.
        summary: makes one line of a run's result, as its record stores it.
        makes_head: whether the run's folder holds a head, which `penult verify` checks and `--head` finds.
        makes_backbone: whether the run also leaves a fine-tuned backbone, which `penult verify` checks.
        source: the parameter that names the file or folder that the run read, which `penult doctor` reads again.

    Example:
        >>> audit = RunKind("audit", lambda result: f"{result['checked']} images checked")
        >>> audit.summary({"checked": 7})  # what `penult runs` says of it, after register(audit)
        '7 images checked'
    """

    name: str
    summary: Callable[[Mapping[str, Any]], str] = lambda _result: ""
    makes_head: bool = False
    makes_backbone: bool = False
    source: str = "source"


def register(kind: RunKind) -> None:
    """Add a kind of run to the table, or replace the one of the same name."""
    _KINDS[kind.name] = kind


def kind_of(name: str) -> RunKind:
    """Return the kind of this name; a kind that is not registered leaves only its record."""
    return _KINDS.get(name, RunKind(name))


def head_kinds(fine_tuned: bool = True) -> list[str]:
    """Return the names of the kinds that make heads; without ``fine_tuned``, only those with a frozen backbone."""
    return [kind.name for kind in _KINDS.values() if kind.makes_head and (fine_tuned or not kind.makes_backbone)]


def _of_head(result: Mapping[str, Any]) -> str:
    best = result.get("winner", result)
    return f"{best['head']} {best['test']:.1%} on test"


def _of_protocol(result: Mapping[str, Any]) -> str:
    scores = [row["top1"] for row in result["scores"]]
    told = " to ".join(dict.fromkeys(f"{score:.1%}" for score in (min(scores), max(scores))))
    return f"{result['protocol']} {told} on test"


def _of_night(result: Mapping[str, Any]) -> str:
    labels, checks = result["labels"]["changed"], [c for c in result["checks"] if c["status"] != "ok"]
    told = [f"{result['date']} {result['decision']}", f"{result['embed']['new'] + result['embed']['changed']:,} new"]
    told += [f"{labels:,} relabelled"] if labels else []
    told += [f"{check['name']} {check['status']}s" for check in checks]
    scores = ((who, result[who]) for who in ("challenger", "champion"))
    told += [f"{who} {head['score']:.1%}" for who, head in scores if head and head["score"] is not None]
    return ", ".join(told)


_JOBS = (
    RunKind("embed", lambda r: f"{r['embedded']:,} embedded, {r['failed']:,} failed"),
    RunKind("forget", lambda r: f"{r['removed']:,} images removed"),
    RunKind("label", lambda r: f"{r['added']:,} added, {r['changed']:,} changed", source="file"),
    RunKind("train", _of_head, makes_head=True),
    RunKind("compare", _of_head, makes_head=True),
    RunKind("protocol", _of_protocol),
    RunKind("trial", lambda r: r["recommendation"]),
    RunKind("retrain", _of_night, source="recipe"),
    RunKind(
        "finetune",
        lambda r: f"{r['before']['test']:.1%} → {r['after']['test']:.1%} on test",
        makes_head=True,
        makes_backbone=True,
    ),
)
_KINDS = {kind.name: kind for kind in _JOBS}
