"""Run records: one immutable JSON file per run, in the folder that holds the run's results."""

from __future__ import annotations

import platform
import re
import secrets
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import PurePath
from typing import Any

from featurestore import layout
from featurestore.errors import StoreCorrupt, StoreNotFound
from featurestore.storage.files import flush, is_file, make_folder, read_sealed, write_sealed

STAMP = "%Y%m%dT%H%M%S%fZ"
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
    """The record of one run: its kind, parameters, result and library versions."""

    run_id: str
    kind: str  # "embed", "train", "compare", …
    started: str  # UTC, ISO 8601
    parameters: dict[str, Any]
    result: dict[str, Any]
    versions: dict[str, str] = field(default_factory=lambda: library_versions())

    def write(self, folder: PurePath) -> None:
        """Write ``run.json`` into the run's folder; create the folder if it is missing."""
        make_folder(folder)
        write_sealed(folder / layout.RECORD, asdict(self))
        flush(folder.parent)
        flush(folder.parent.parent)

    @classmethod
    def read(cls, folder: PurePath) -> RunRecord:
        """Read a run's record.

        Raises:
            StoreNotFound: the folder holds no record.
            StoreCorrupt: the record is damaged, or another run's.
        """
        path = folder / layout.RECORD
        try:
            told = read_sealed(path)
        except StoreCorrupt:
            if is_file(path):
                raise
            raise StoreNotFound(f"There is no run {folder.name}; `penult runs` lists them.") from None
        values: dict[str, Any] = {field.name: told.get(field.name) for field in fields(cls)}
        for name, value in values.items():
            if not isinstance(value, dict if name in ("parameters", "result", "versions") else str):
                raise StoreCorrupt(f"Expected: the record of a run in {path}. Got: no {name}.")
        if values["run_id"] != folder.name:
            raise StoreCorrupt(f"Expected: the record of run {folder.name} in {path}. Got: another run's.")
        return cls(**values)


def new_run_id(kind: str, after: str | None = None) -> str:
    """Return an id ``<utc>-<kind>-<random>`` that sorts by time, and after ``after`` even if the clock is behind."""
    now, last = datetime.now(UTC), None if after is None else time_of(after)
    if last is not None and last >= now:
        now = last + timedelta(microseconds=1)
    return f"{now:{STAMP}}-{kind}-{secrets.token_hex(3)}"


def time_of(run_id: str) -> datetime | None:
    """Return when a run began, read from its id; None if penult did not make the id."""
    try:
        return datetime.strptime(run_id.partition("-")[0], STAMP).replace(tzinfo=UTC)
    except ValueError:
        return None


def is_run_id(name: object) -> bool:
    """Return whether a name may be a run id: a plain folder name that is harmless in SQL."""
    return isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) is not None


def utc_now() -> str:
    """Return the time now: UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}
