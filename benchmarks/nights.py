"""Claim: a night on which nothing changed is cheap, on a store of 100,000 images too, and starts no heavy library.

The first night is real but for a backbone of no cost. CPU seconds are those of a whole process, user and system.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import fake
from benchmarks.memory import write_small
from benchmarks.report import show

RECIPE = """
[source]
location = "photos"

[compare]
heads = ["ncm"]

[promote]
rule = "better"
"""
HEAVY = ("tensorflow", "apache_beam", "openvino", "sklearn")


def night(date: str, recipe: Path, store: Path, whole: bool = False) -> None:
    """Run a night in this process, with a backbone of no cost for the ``whole`` of it; print what it took."""
    from pipelines.__main__ import main as penult

    if whole:
        fake.install()
    sys.argv[1:] = ["retrain", str(recipe), "--store", str(store), "--date", date, "--json"]
    penult()


def quiet(date: str, recipe: Path, store: Path) -> dict[str, object]:
    """Run a night in a process of its own; return its row of the table."""
    script = (
        "import sys; from benchmarks.nights import night; from pathlib import Path; "
        f"night({date!r}, Path({str(recipe)!r}), Path({str(store)!r}), {date.endswith('01')}); "
    )
    watch = f"import atexit, sys; atexit.register(lambda: print([m for m in {HEAVY!r} if m in sys.modules]))\n"
    installed = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen([sys.executable, "-c", watch + script], stdout=subprocess.PIPE, text=True, env=installed)
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    _, status, used = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, lines
    told = json.loads(next(line for line in lines if line.startswith("{")))
    return {
        "night": date,
        "decision": told["decision"],
        "files": f"{told['embed']['seen']:,}",
        "CPU seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak RSS, MiB": round(used.ru_maxrss / 1024),
        "heavy libraries": lines[-1].strip("[]").replace("'", "") or "none",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_small(Path(folder) / "photos", arguments.images)
        recipe = Path(folder) / "nightly.toml"
        recipe.write_text(RECIPE)
        rows = [quiet(f"2026-11-{day:02}", recipe, Path(folder) / "store") for day in (1, 2, 3, 4)]
    show("Nights", rows)


if __name__ == "__main__":
    main()
