"""Claims: commands that people wait for start quickly. Whole processes, medians."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.corpus import write_crops
from benchmarks.report import show

PENULT = [sys.executable, "-m", "pipelines"]


def seconds(command: list[str], runs: int) -> float:
    """Median seconds of a whole process, after one run that warms the caches."""
    taken = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        subprocess.run(PENULT + command, check=True, capture_output=True)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run([*PENULT, "demo", f"{folder}/demo", "--json"], check=True, capture_output=True, text=True)
        head = json.loads(made.stdout.splitlines()[-1])["compare"]["winner"]["head_id"]
        store = ["--store", f"{folder}/demo/store"]
        new = next(write_crops(Path(folder) / "new", 1).rglob("*.jpg"))
        known = f"{folder}/demo/digits/7/0007.png"
        rows = [
            {"command": name, "seconds": round(seconds(command, arguments.runs), 2)}
            for name, command in (
                ("penult --help", ["--help"]),
                ("penult status (1,797 images)", ["status", *store]),
                ("penult predict, one image that the store has", ["predict", known, "--head", head, *store]),
                ("penult predict, one new image", ["predict", str(new), "--head", head, *store]),
                ("penult embed, nothing new (1,797 images)", ["embed", f"{folder}/demo/digits", *store]),
                ("penult train (logistic regression, 1,267 images)", ["train", *store]),
            )
        ]
    show("Whole commands", rows)


if __name__ == "__main__":
    main()
