"""The mutants of a module: Cosmic Ray's operators that an engineer could type by mistake, and two of our own.

Left out: annotations, which nothing runs; a comparison turned into ``is`` and back, which changes nothing or is always
a warning; arithmetic turned into bit operators, which nearly every test would notice. The two of our own are the faults
that hid best in this code: a call that is not made, and an option that is not passed on.
"""

from __future__ import annotations

import ast
import difflib
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import parso
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.plugins import get_operator, operator_names
from parso.python.tree import Keyword, Name
from parso.tree import NodeOrLeaf

LEFT_OUT = re.compile(
    r"ReplaceBinaryOperator_\w+_(RShift|LShift|BitOr|BitAnd|BitXor)$"
    r"|ReplaceComparisonOperator_(Eq|NotEq|Lt|LtE|Gt|GtE)_Is(Not)?$"
    r"|ReplaceComparisonOperator_Is(Not)?_(Eq|NotEq|Lt|LtE|Gt|GtE)$"
    r"|ReplaceUnaryOperator_Delete_|Variable"
)
IDLE = {"encoding", "strict"}
"""Keyword arguments whose loss nothing could notice: UTF-8 is the default here, zip's check is for the reader."""
SILENT = {"name", "newline", "string", "endmarker"}

Position = tuple[int, int]


class CallRemover(Operator):
    """A call whose value nobody takes is not made."""

    def mutation_positions(self, node: NodeOrLeaf) -> Iterator[tuple[Position, Position]]:
        """Where the statement is nothing but a call."""
        if node.type in ("atom_expr", "power") and node.parent and node.parent.type == "simple_stmt":
            last = node.children[-1]
            if last.type == "trailer" and last.children[0].value == "(":
                yield node.start_pos, node.end_pos

    def mutate(self, node: NodeOrLeaf, index: int) -> NodeOrLeaf:
        """``pass`` in the place of the call."""
        return Keyword("pass", node.start_pos, node.get_first_leaf().prefix)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        """One call."""
        return (Example("os.fsync(file)\n", "pass\n"),)


class ArgumentRemover(Operator):
    """A keyword argument is not passed on."""

    def mutation_positions(self, node: NodeOrLeaf) -> Iterator[tuple[Position, Position]]:
        """Where a call names its arguments."""
        for argument in keywords(node):
            yield argument.start_pos, argument.end_pos

    def mutate(self, node: NodeOrLeaf, index: int) -> NodeOrLeaf:
        """The call without the argument, and without the comma after it, or before it where it is the last."""
        argument = keywords(node)[index]
        at = node.children.index(argument)
        following = at + 1 < len(node.children) and getattr(node.children[at + 1], "value", "") == ","
        preceding = not following and getattr(node.children[at - 1], "value", "") == ","
        del node.children[at - preceding : at + 1 + following]
        return node

    @classmethod
    def examples(cls) -> Sequence[Example]:
        """One argument of two, and the only one."""
        return Example("fit(x, seed=seed)", "fit(x)"), Example("fit(seed=seed)", "fit()")


def keywords(node: NodeOrLeaf) -> list[Any]:
    """The keyword arguments right under a node."""
    if node.type not in ("arglist", "trailer"):
        return []
    found = [child for child in node.children if child.type == "argument" and child.children[1] == "="]
    return [child for child in found if isinstance(child.children[0], Name) and child.children[0].value not in IDLE]


@dataclass(frozen=True)
class Mutant:
    """One fault: the ``occurrence``-th place that ``operator`` can change in a module."""

    module: str
    operator: str
    occurrence: int
    start: Position

    def source(self, tree: Path) -> str:
        """The module with the fault in it."""
        return mutate_code((tree / self.module).read_text(), operators()[self.operator], self.occurrence)

    def change(self, tree: Path) -> tuple[str, str]:
        """The lines that differ, before and after, without their indentation."""
        before, after = (tree / self.module).read_text().splitlines(), self.source(tree).splitlines()
        told = [line for line in difflib.ndiff(before, after) if line[2:].strip()]
        old, new = ("\n".join(line[2:].strip() for line in told if line[0] == sign) for sign in "-+")
        return old, new


@cache
def operators() -> dict[str, Operator]:
    """Every operator by its name."""
    names = [name for name in operator_names() if not LEFT_OUT.search(name)]
    own = {"RemoveCall": CallRemover(), "RemoveArgument": ArgumentRemover()}
    return {name.partition("/")[2]: get_operator(name)() for name in names} | own


def sample(tree: Path, modules: list[str], seed: int, count: int) -> list[Mutant]:
    """``count`` places of the modules at random, and at each place one of its mutants at random."""
    places: dict[tuple[str, Position], list[Mutant]] = defaultdict(list)
    for module in modules:
        for mutant in mutants(module, (tree / module).read_text()):
            places[module, mutant.start].append(mutant)
    dice = random.Random(seed)
    drawn = dice.sample(sorted(places), len(places))
    found = (next(filter(partial(compiles, tree), dice.sample(places[at], len(places[at]))), None) for at in drawn)
    return list(islice(filter(None, found), count))


def compiles(tree: Path, mutant: Mutant) -> bool:
    """Whether it can be made, and read by Python: one operator writes ``if not a := b``, another knows no ``a.b``."""
    try:
        compile(mutant.source(tree), mutant.module, "exec")
    except (SyntaxError, AttributeError):
        return False
    return True


def mutants(module: str, source: str) -> Iterator[Mutant]:
    """Every mutant of a module."""
    silent = annotations(source)
    nodes = [node for node in ast_nodes(parso.parse(source)) if node.type not in SILENT]
    for name, operator in operators().items():
        positions = (position for node in nodes for position, _ in operator.mutation_positions(node))
        for occurrence, start in enumerate(positions):
            if not any(first <= start < last for first, last in silent):
                yield Mutant(module, name, occurrence, start)


def annotations(source: str) -> list[tuple[Position, Position]]:
    """Where the annotations of a module begin and end."""
    found = []
    for node in ast.walk(ast.parse(source)):
        for kind in ("annotation", "returns"):
            at = getattr(node, kind, None)
            if at is not None:
                found.append(((at.lineno, at.col_offset), (at.end_lineno, at.end_col_offset)))
    return found
