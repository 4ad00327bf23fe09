"""Run every benchmark, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

SCRIPTS = ("embed", "memory", "latency", "read", "objects")

if __name__ == "__main__":
    for script in SCRIPTS:
        subprocess.run([sys.executable, "-m", f"benchmarks.{script}"], check=True)
