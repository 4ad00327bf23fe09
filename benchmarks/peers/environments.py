"""The peers: their environments, made from the locks beside this file, and the commands that run them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
HOME = Path(tempfile.gettempdir()) / "penult-bench" / "peers"
QUIET = {
    "DAFT_ANALYTICS_ENABLED": "0",
    "DATACHAIN_NO_ANALYTICS": "1",
    "DO_NOT_TRACK": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True)
class Peer:
    """One row of the tables.

    Attributes:
        title: as the tables name it.
        program: a file of ``programs``, without its ending.
        packages: whose versions are told.
        sink: what it writes.
        lock: which requirements it has; None for this environment.
        options: of the program, or of ``penult embed``.
    """

    title: str
    program: str
    packages: tuple[str, ...]
    sink: str
    lock: str | None = None
    options: tuple[str, ...] = ()

    @property
    def python(self) -> str:
        return sys.executable if self.lock is None else str(HOME / self.lock / "bin" / "python")

    def embed(self, corpus: Path, graph: Path, output: Path, crop: str, counted: bool) -> list[str]:
        """The command that embeds; penult's own is counted only where someone reads the count."""
        if self.lock is None:
            crops = ["--center-crop"] if crop == "center" else []
            start = [str(HERE / "programs" / "penult_counted.py"), "run"] if counted else ["-m", "pipelines"]
            return [self.python, *start, "embed", str(corpus), "--store", str(output), *crops, *self.options, "--json"]
        program = str(HERE / "programs" / f"{self.program}.py")
        return [self.python, program, "embed", str(corpus), str(graph), str(output), "--crop", crop, *self.options]

    def dump(self, output: Path, file: Path, crop: str) -> list[str]:
        """The command that writes down what is in an output."""
        program = str(HERE / "programs" / f"{self.program}.py")
        return [self.python, program, "dump", str(output), str(file), "--crop", crop]

    def versions(self) -> str:
        """The packages and their versions."""
        if self.lock is None:
            return ", ".join(f"{name} {metadata.version(name)}" for name in self.packages)
        code = (
            "import sys; from importlib.metadata import version;"
            "print(*(f'{name} {version(name)}' for name in sys.argv[1:]), sep=', ')"
        )
        done = subprocess.run([self.python, "-c", code, *self.packages], check=True, capture_output=True, text=True)
        return done.stdout.strip()


PEERS = {
    "script": Peer("script, threads", "script", ("pylance",), "Lance, one write", "script"),
    "penult": Peer("penult", "penult_counted", ("apache-beam", "pylance"), "its store"),
    "penult-small": Peer(
        "penult, shards of 64 images", "penult_counted", ("apache-beam",), "its store", options=("--shard-images", "64")
    ),
    "daft": Peer("Daft", "daft_udf", ("daft", "daft-lance"), "`write_lance`", "daft"),
    "datasets": Peer("`datasets.map`", "hf_datasets", ("datasets",), "cache and `save_to_disk`", "datasets"),
    "ray": Peer("Ray Data, lance-ray", "ray_data", ("ray", "lance-ray"), "`write_lance`", "ray"),
    "ray-checkpoint": Peer(
        "Ray Data, its checkpoint", "ray_data", ("ray",), "`write_parquet`", "ray", options=("--checkpoint",)
    ),
    "datachain": Peer("datachain", "datachain_map", ("datachain",), "`save`, SQLite", "datachain"),
}


def make(lock: str) -> None:
    """Make an environment as its lock says; one that is there is left alone."""
    folder, requirements = HOME / lock, HERE / f"requirements-{lock}.txt"
    done = folder / "installed"
    if done.exists() and done.read_bytes() == requirements.read_bytes():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--requirement", str(requirements)], check=True, stdout=sys.stderr)
    done.write_bytes(requirements.read_bytes())


def environment(**more: str) -> dict[str, str]:
    """The variables of a process that reports to nobody."""
    return dict(os.environ) | QUIET | {"PYTHONPATH": str(HERE.parents[1])} | more
