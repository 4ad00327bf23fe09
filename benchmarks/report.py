"""Tables with the command and the machine, so that a figure can be traced and repeated."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featurestore.machine import available_cores


def machine() -> str:
    """CPU, cores and memory in words."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    native = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = available_cores()
    return f"{model} ({', '.join(native)}), {cores} cores, {memory:.0f} GiB, Python {platform.python_version()}"


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print a Markdown table with the command that made it."""
    print(f"\n### {title}\n")
    names = list(rows[0])
    print("| " + " | ".join(names) + " |")
    print("|" + "|".join("---" if isinstance(rows[0][name], str) else "---:" for name in names) + "|")
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in names) + " |")
    program = Path(sys.argv[0])
    module = program.parent.name if program.stem == "__main__" else program.stem
    print(f"\n`python -m benchmarks.{module} {shlex.join(sys.argv[1:])}`".replace(" `", "`") + f" on {machine()}\n")
    sys.stdout.flush()


def peak() -> int:
    """Bytes that this process has had in memory at most; ru_maxrss would count the process that started it."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024
