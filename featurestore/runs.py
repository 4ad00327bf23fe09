"""Run records: one immutable JSON a run, and a folder for what the run made."""

from __future__ import annotations

import platform
import secrets
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from featurestore.errors import StoreNotFound
from featurestore.files import fsync, read_json, write_json

LIBRARIES = (
    "apache-beam",
    "keras",
    "lancedb",
    "numpy",
    "openvino",
    "penult",
    "pylance",
    "scikit-learn",
    "tensorflow",
)


@dataclass(frozen=True)
class RunRecord:
    """What was done, with what, and what came out."""

    run_id: str
    kind: str  # "embed", "train", "compare", …
    started: str  # UTC, ISO 8601
    parameters: dict[str, Any]
    result: dict[str, Any]
    versions: dict[str, str] = field(default_factory=lambda: library_versions())

    def write(self, folder: Path) -> None:
        """Write ``run.json`` into the run's folder, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "run.json", asdict(self))
        fsync(folder.parent)

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Read a run's record.

        Raises:
            StoreNotFound: the folder holds none.
        """
        if not (folder / "run.json").is_file():
            raise StoreNotFound(f"There is no run {folder.name}; `penult runs` lists them.")
        return cls(**read_json(folder / "run.json"))


def new_run_id(kind: str) -> str:
    """An id that sorts by time: ``<utc>-<kind>-<random>``."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}-{kind}-{secrets.token_hex(3)}"


def utc_now() -> str:
    """The time now, UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}
