"""A leaderboard as an Arrow table, and as a CSV file, for those who go on with it elsewhere."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from featurestore.errors import UsageError
from featurestore.storage.files import replacing

BEFORE = {  # columns before those of the parameters, and after them
    "run_id": pa.string(),
    "rank": pa.int64(),
    "feature_set": pa.string(),
    "head": pa.string(),
    "class_weight": pa.string(),
}
AFTER = {
    "views": pa.int64(),
    **dict.fromkeys(("val", "val_low", "val_high", "val_min", "val_max", "p_value", "p_corrected"), pa.float64()),
    "tied": pa.bool_(),
    "fit_seconds": pa.float64(),
    **dict.fromkeys(("test", "test_low", "test_high"), pa.float64()),
    "note": pa.string(),
    "error": pa.string(),
}


def table(result: Mapping[str, Any]) -> pa.Table:
    """Return the leaderboard of a comparison, best first, with one row per candidate.

    Columns that do not apply to a row are null there. Scores are shares from 0 to 1. See ``CompareResult`` for what
    they mean.

    * "run_id", "rank" from 1, "feature_set", "head", "class_weight" ("none" or "balanced");
    * one column per parameter of a family, under its own name, or with "param_" before one that is taken;
    * "views"; "val" with its interval "val_low" to "val_high", and over several seeds "val_min" to "val_max";
      "p_value", "p_corrected" and "tied" against the first; "fit_seconds";
    * "test", "test_low" and "test_high" of the winner alone, as no other head sees the test split; "note"; "error".

    Args:
        result: what ``pipelines.training.compare_heads`` returns, or what the record of such a run holds as ``result``.

    Example:
        >>> row = {"head": "knn", "params": {"k": 3}, "class_weight": None, "val": 0.5, "val_ci": [0.4, 0.6],
        ...        "fit_seconds": 0.1}
        >>> winner = {"test": 0.5, "test_ci": [0.3, 0.7]}
        >>> found = table({"run_id": "r", "feature_set": "s", "leaderboard": [row], "winner": winner})
        >>> found.select(["head", "k", "val", "test_high"]).to_pylist()
        [{'head': 'knn', 'k': 3, 'val': 0.5, 'test_high': 0.7}]
    """
    board = result["leaderboard"]
    named = dict.fromkeys(name for row in board for name in row["params"])
    params = {_column(name): _array([row["params"].get(name) for row in board]) for name in named}
    rows = [_row(rank, row, result) for rank, row in enumerate(board, 1)]
    before, after = (
        {name: pa.array([row[name] for row in rows], kind) for name, kind in columns.items()}
        for columns in (BEFORE, AFTER)
    )
    return pa.table(before | params | after)


def check(path: Path) -> None:
    """Check, before anything is fitted, that a CSV file can be written.

    Raises:
        UsageError: it cannot; the message says why.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "Is a directory")
        tempfile.TemporaryFile(dir=path.parent).close()
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"Expected: --csv, a file that can be written. Got: {path}: {why}.") from error


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write the columns and rows of ``table`` to a CSV file in UTF-8, atomically.

    Numbers have all their digits, so that they are read back as they are; null is an empty field.

    Raises:
        StoreError: the file cannot be written.
    """
    found = table(result)
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(found.column_names)
        writer.writerows(map(_text, row.values()) for row in found.to_pylist())


def _row(rank: int, row: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a row that are no parameters."""
    told = dict.fromkeys((*BEFORE, *AFTER)) | {name: row[name] for name in row.keys() & {*BEFORE, *AFTER}}
    told |= {"run_id": result["run_id"], "rank": rank, "class_weight": row.get("class_weight") or "none"}
    told["feature_set"] = row.get("feature_set") or result["feature_set"]
    told |= _ends("val", ("low", "high"), row["val_ci"]) | _ends("val", ("min", "max"), row.get("val_range"))
    if rank == 1 + result.get("chosen", 0):
        winner = result["winner"]
        told |= {"test": winner["test"]} | _ends("test", ("low", "high"), winner["test_ci"])
    return told


def _ends(name: str, ends: Sequence[str], values: Sequence[float] | None) -> dict[str, float]:
    return {f"{name}_{end}": value for end, value in zip(ends, values or (), strict=False)}


def _column(param: str) -> str:
    return f"param_{param}" if param in BEFORE | AFTER else param


def _array(values: list[Any]) -> pa.Array:
    """Return the values of a parameter, as text if families give it values of several types."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values])


def _text(value: Any) -> Any:
    """Return a value as a CSV file holds it: widths as --hidden takes them, and truth as other readers expect it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else value
