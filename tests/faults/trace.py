"""What a command does to a folder, told by strace: each change and each flush in order, with the bytes written."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import unittest
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from faults import needs

CALLS = (
    "openat,open,creat,write,pwrite64,writev,lseek,ftruncate,"
    "rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,mkdir,mkdirat,fsync,fdatasync"
)
# -xx: every string in hexadecimal, so that none holds a comma or a quote
STRACE = ["strace", "-f", "-y", "-xx", "-s", str(2**28), "--seccomp-bpf", "-e", f"trace={CALLS}", "-e", "signal=none"]

_LINE = re.compile(r"(\d+) +(.*)")
_CALL = re.compile(r"(\w+)\((.*)\) += (\d+)(?:<(.*)>)?")  # of those that failed there is nothing to tell
_OPEN = re.compile(r"\d+<(.*)>(\(deleted\))?")


@dataclass(frozen=True)
class Change:
    """One system call that changed a folder, or flushed something in it; paths are relative to the folder."""

    kind: str  # create, truncate, write, fsync, rename, link, unlink or mkdir
    path: str  # "." is the folder itself
    to: str = ""  # of rename and link
    at: int = 0  # where to write, or the length after truncate; AT_END
    data: bytes = b""


AT_END = -1


def traced(command: list[str], words: Iterable[str], folder: Path, cwd: Path) -> list[Change]:
    """Run a command to its end and return what it did to ``folder``.

    Args:
        command: a program.
        words: lines for its standard input; each is written once it has answered the one before with a line of "0".
        folder: where it works.
        cwd: where it is started.

    Raises:
        SkipTest: there is no strace, or it may not trace here.
        AssertionError: the command failed.
    """
    needs("strace")
    with (
        tempfile.NamedTemporaryFile("r", encoding="ascii") as log,
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [*STRACE, "-o", log.name, *command],
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            bufsize=1,
        ) as process,
    ):
        answers = [_ask(process, line) for line in words]
        process.communicate()
        errors.seek(0)
        said = errors.read()
        if "PTRACE" in said:
            raise unittest.SkipTest(f"strace may not trace here: {said.splitlines()[0]}")
        assert process.returncode == 0 and set(answers) <= {"0\n"}, f"{answers}, {process.returncode}: {said}"
        return list(changes(log, folder))


def _ask(process: subprocess.Popen[str], line: str) -> str:
    """Write a line; the one that is answered, which is empty where the process is gone."""
    assert process.stdin is not None and process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.write(f"{line}\n")
    return process.stdout.readline()


def changes(lines: Iterable[str], folder: Path) -> Iterator[Change]:
    """What the calls of a log did to ``folder``, in the order in which they ended."""
    positions: dict[str, int] = {}  # of files that are open, by number and path, as in 11</path>
    root = str(folder.resolve())

    def inside(path: str) -> str | None:
        return os.path.relpath(path, root) if path == root or path.startswith(f"{root}/") else None

    for name, arguments, result, shown in _calls(lines):
        first = arguments[0]
        opened = _OPEN.fullmatch(first)
        if name in ("openat", "open", "creat"):
            path = inside(_text(shown))
            flags = arguments[2 if name == "openat" else 1] if name != "creat" else "O_CREAT|O_TRUNC"
            positions[f"{result}<{shown}>"] = AT_END if "O_APPEND" in flags else 0
            if path is not None and "O_CREAT" in flags:
                yield Change("create", path)
            if path is not None and "O_TRUNC" in flags:
                yield Change("truncate", path)
        elif name == "lseek":
            if positions.get(first) != AT_END:
                positions[first] = result
        elif name in ("write", "pwrite64", "writev", "ftruncate", "fsync", "fdatasync"):
            path = inside(_text(opened[1])) if opened and not opened[2] else None
            if path is None:
                continue
            if name in ("fsync", "fdatasync"):
                yield Change("fsync", path)
            elif name == "ftruncate":
                yield Change("truncate", path, at=int(arguments[1]))
            else:
                data = b"".join(map(_bytes, re.findall(r'"([^"]*)"', ", ".join(arguments))))[:result]
                at = int(arguments[3]) if name == "pwrite64" else positions.get(first, 0)
                yield Change("write", path, at=at, data=data)
                if name != "pwrite64" and at != AT_END:
                    positions[first] = at + result
        else:
            paths = list(map(inside, _paths(arguments)))
            kind = {"rmdir": "unlink"}.get(name, name.removesuffix("2").removesuffix("at"))
            if all(path is not None for path in paths):
                yield Change(kind, *paths)  # type: ignore[arg-type]
            else:
                assert not any(paths), f"{name} from or to elsewhere: {paths}"


def _calls(lines: Iterable[str]) -> Iterator[tuple[str, list[str], int, str]]:
    """(name, arguments, result, path of the result) of each call, those of several threads that overlap made whole."""
    begun: dict[str, str] = {}
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        thread, text = match.groups()
        if text.endswith(" <unfinished ...>"):
            begun[thread] = text.removesuffix(" <unfinished ...>")
            continue
        if text.startswith("<... "):
            text = begun.pop(thread, "") + text.partition(" resumed>")[2]
        if call := _CALL.match(text):
            yield call[1], call[2].split(", "), int(call[3]), call[4] or ""


def _paths(arguments: list[str]) -> Iterator[str]:
    """The paths that arguments name, each below the open folder before it where there is one."""
    base = ""
    for argument in arguments:
        if argument.startswith('"'):
            yield str(Path(base, _text(argument.strip('"'))))
            base = ""
        elif match := re.fullmatch(r"\w+<(.*)>", argument):
            base = _text(match[1])


def _text(escaped: str) -> str:
    return os.fsdecode(_bytes(escaped))


def _bytes(escaped: str) -> bytes:
    return re.sub(rb"\\x(..)", lambda match: bytes.fromhex(match[1].decode()), escaped.encode())
