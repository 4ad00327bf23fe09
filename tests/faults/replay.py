"""A disk, replayed from the calls that changed it, with what a power cut may make of it.

It owes nothing that was not asked for: a file's bytes are safe once the file was flushed since its last write, a name
is there, or gone, or another file's, once its folder was flushed since. Of all else anything may be there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from faults.trace import AT_END, Change

BYTES = ("emptied", "cut", "zeroed", "whole", "mixed")  # what may become of bytes that were not flushed
Image = dict[str, bytes | None]  # bytes by path, None for a folder


@dataclass(eq=False)
class File:
    data: bytearray = field(default_factory=bytearray)
    flushed: bytes | None = None


@dataclass(eq=False)
class Folder:
    names: dict[str, File | Folder] = field(default_factory=dict)
    flushed: dict[str, File | Folder] = field(default_factory=dict)


Node = File | Folder


class Name(NamedTuple):
    """A name that is entered in a folder or, without a node, taken away from it."""

    folder: Folder
    name: str
    node: Node | None
    path: str


Step = list[Name]  # what one call did, whole or not at all


class Disk:
    """A folder and how much of it is safe: all that it held to begin with, and what was flushed since."""

    def __init__(self, changes: Sequence[Change], start: Mapping[str, bytes | None]) -> None:
        self.root = Folder()
        self._pending: list[Step] = []  # not flushed, in order
        for path, data in sorted(start.items()):
            name = self._name(path)
            node: Node = Folder() if data is None else File(bytearray(data), data)
            name.folder.names[name.name] = name.folder.flushed[name.name] = node
        for change in changes:
            self._apply(change)

    def now(self) -> Image:
        """Paths and bytes as the system shows them, None for a folder."""
        return dict(_walk(self.root, lambda folder: folder.names, lambda file: bytes(file.data)))

    def unflushed(self) -> list[str]:
        """Paths whose name or bytes a cut may lose."""
        names = {name.path for step in self._pending for name in step}
        whole = dict(_walk(self.root, lambda folder: folder.names, lambda f: b"" if f.data == f.flushed else b"dirty"))
        return sorted(names | {path for path, data in whole.items() if data})

    def after_cut(self, happened: Callable[[list[str]], bool], damaged: Callable[[bytes], bytes]) -> Image:
        """Paths and bytes as a cut leaves them.

        Args:
            happened: of a call that changed names and was not flushed, by its paths: whether that is there.
            damaged: makes of bytes that were not flushed what there is of them.
        """
        held: dict[int, dict[str, Node]] = {}

        def names(folder: Folder) -> dict[str, Node]:
            return held.setdefault(id(folder), dict(folder.flushed))

        def data(file: File) -> bytes:
            return bytes(file.data) if file.data == file.flushed else damaged(bytes(file.data))

        for step in self._pending:
            if happened([name.path for name in step]):
                for name in step:
                    _enter(names(name.folder), name)
        return dict(_walk(self.root, names, data))

    def _apply(self, change: Change) -> None:
        there = self._name(change.path)
        node = there.node
        if change.kind in ("create", "mkdir"):
            if node is None:
                self._step([there._replace(node=File() if change.kind == "create" else Folder())])
        elif change.kind == "unlink":
            self._step([there._replace(node=None)])
        elif change.kind in ("rename", "link"):
            assert node is not None, change
            new = self._name(change.to)._replace(node=node)
            self._step([there._replace(node=None), new] if change.kind == "rename" else [new])
        elif isinstance(node, Folder):
            assert change.kind == "fsync", change
            self._flush(node)
        elif isinstance(node, File):
            if change.kind == "fsync":
                node.flushed = bytes(node.data)
            elif change.kind == "truncate":
                node.data[:] = node.data[: change.at].ljust(change.at, b"\0")
            else:
                at = len(node.data) if change.at == AT_END else change.at
                node.data.extend(bytes(max(0, at - len(node.data))))
                node.data[at : at + len(change.data)] = change.data
        else:
            raise AssertionError(f"{change.kind} of what is not there: {change.path}")

    def _name(self, path: str) -> Name:
        folder: Node = self.root
        if path == ".":
            return Name(self.root, "", self.root, path)
        *parents, name = Path(path).parts
        for parent in parents:
            assert isinstance(folder, Folder), path
            folder = folder.names[parent]
        assert isinstance(folder, Folder), path
        return Name(folder, name, folder.names.get(name), path)

    def _step(self, step: Step) -> None:
        self._pending.append(step)
        for name in step:
            _enter(name.folder.names, name)

    def _flush(self, folder: Folder) -> None:
        for step in [step for step in self._pending if any(name.folder is folder for name in step)]:
            self._pending.remove(step)
            for name in step:
                _enter(name.folder.flushed, name)


def _enter(names: dict[str, Node], name: Name) -> None:
    if name.node is None:
        names.pop(name.name, None)
    else:
        names[name.name] = name.node


def _walk(
    folder: Folder, names: Callable[[Folder], dict[str, Node]], data: Callable[[File], bytes], path: str = ""
) -> Iterator[tuple[str, bytes | None]]:
    for name, node in sorted(names(folder).items()):
        below = f"{path}{name}"
        if isinstance(node, Folder):
            yield below, None
            yield from _walk(node, names, data, f"{below}/")
        else:
            yield below, data(node)


def damage(how: str, choose: random.Random) -> Callable[[bytes], bytes]:
    """What a cut makes of bytes that were not flushed: one of BYTES."""
    ways = {
        "emptied": lambda data: b"",
        "cut": lambda data: data[: len(data) // 2],
        "zeroed": lambda data: bytes(len(data)),
        "whole": lambda data: data,
    }
    return ways.get(how) or (lambda data: choose.choice(list(ways.values()))(data))


def write(image: Image, folder: Path) -> None:
    """Write what ``after_cut`` gives into a folder."""
    for path, data in image.items():
        if data is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(data)


def read(folder: Path) -> Image:
    """What a folder holds."""
    paths = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    return {name: path.read_bytes() if path.is_file() else None for name, path in paths.items()}
