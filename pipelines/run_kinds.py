"""What the jobs' runs are to the rest of penult: how each kind is told in one line, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunKind:
    """One kind of run.

    Attributes:
        name: as in a run's id and record.
        summary: one line of a run's result, as its record keeps it.
        makes_head: its folder holds a head; `penult verify` reads it, `--head` finds it.
        makes_backbone: it leaves a fine-tuned backbone as well, which `penult verify` reads.
        source: the parameter that names the file or folder it has read, for `penult doctor` to read it again.

    Example:
        >>> register(RunKind("audit", lambda result: f"{result['checked']} images checked"))
        >>> kind_of("audit").summary({"checked": 7})
        '7 images checked'
    """

    name: str
    summary: Callable[[Mapping[str, Any]], str] = lambda _result: ""
    makes_head: bool = False
    makes_backbone: bool = False
    source: str = "source"


def register(kind: RunKind) -> None:
    """Make a kind of run known."""
    _KINDS[kind.name] = kind


def kind_of(name: str) -> RunKind:
    """The kind of this name; one that nobody has registered leaves nothing but its record."""
    return _KINDS.get(name, RunKind(name))


def head_kinds(fine_tuned: bool = True) -> list[str]:
    """Names of the kinds that make heads; without ``fine_tuned`` those whose backbone is the frozen one."""
    return [kind.name for kind in _KINDS.values() if kind.makes_head and (fine_tuned or not kind.makes_backbone)]


def _of_head(result: Mapping[str, Any]) -> str:
    best = result.get("winner", result)
    return f"{best['head']} {best['test']:.1%} on test"


_KINDS: dict[str, RunKind] = {}
for _kind in (
    RunKind("embed", lambda r: f"{r['embedded']:,} embedded, {r['failed']:,} failed"),
    RunKind("forget", lambda r: f"{r['removed']:,} images removed"),
    RunKind("label", lambda r: f"{r['added']:,} added, {r['changed']:,} changed", source="file"),
    RunKind("train", _of_head, makes_head=True),
    RunKind("compare", _of_head, makes_head=True),
    RunKind(
        "finetune",
        lambda r: f"{r['before']['test']:.1%} → {r['after']['test']:.1%} on test",
        makes_head=True,
        makes_backbone=True,
    ),
):
    register(_kind)
