"""The fragments of a Lance table: staged ones as JSON, their files, and the operations that add and remove them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple

import lance
import pyarrow as pa
import pyarrow.compute as pc
from lance.fragment import FragmentMetadata

from featurestore.errors import StoreCorrupt


@dataclass(frozen=True)
class Piece:
    """A fragment of a table: its number, its rows with and without deleted ones, its files relative to the table."""

    id: int
    physical_rows: int
    rows: int
    data: list[str]
    deletions: list[str]


class Replaced(NamedTuple):
    """Rows to be replaced: those with one of ``values`` in ``column`` for which the condition ``where`` (SQL) holds."""

    values: pa.Array
    where: str | None = None
    column: str = "uri"


def fragment_of(staged: str) -> FragmentMetadata:
    """Return a staged fragment from its JSON."""
    told = json.loads(staged)
    return FragmentMetadata.from_json(json.dumps(told.get("fragment", told)))  # older journals hold no digests


def digests_of(staged: str) -> dict[str, str]:
    """Return the sha256, in hex, of a staged fragment's files by their paths relative to the table."""
    return dict(json.loads(staged).get("sha256", {}))


def data_names(fragment: FragmentMetadata) -> list[str]:
    """Return the paths of a fragment's data files, relative to the table.

    Raises:
        StoreCorrupt: a file lies outside the table.
    """
    names = []
    for file in fragment.files:
        name = str(file.path)  # a property that costs 20 microseconds
        if PurePath(name).name != name or file.base_id is not None:
            raise StoreCorrupt(f"Expected: data files inside the table. Got: {name!r}.")
        names.append(f"data/{name}")
    return names


def deletion_names(fragment: FragmentMetadata) -> list[str]:
    """Return the path of a fragment's deletion file, relative to the table, if it has one."""
    return [fragment.deletion_file.path(fragment.id)] if fragment.deletion_file else []


def addition(dataset: Any, new: list[FragmentMetadata], gone: dict[int, list[str]]) -> Any:
    """Return the operation that adds fragments and removes rows; it is valid for one version only.

    ``gone`` holds the addresses of the rows to remove, by fragment. A Merge conflicts with every later commit, but it
    cannot remove fragments. If rows are removed, the operation is therefore an Update. It conflicts with every later
    commit that changed the same fragments, as another commit of this run would.
    """
    present = [fragment.metadata for fragment in dataset.get_fragments()]
    if not gone:
        return lance.LanceOperation.Merge(present + new, dataset.lance_schema)
    kept = {id: dataset.get_fragment(id).delete(f"_rowaddr IN ({','.join(rows)})") for id, rows in gone.items()}
    return lance.LanceOperation.Update(
        removed_fragment_ids=[id for id, fragment in kept.items() if fragment is None],
        updated_fragments=[fragment for fragment in kept.values() if fragment is not None],
        new_fragments=new,
    )


def rows_of(dataset: Any, replaces: Sequence[Replaced]) -> dict[int, list[str]]:
    """Return the addresses of the stored rows to be replaced, by fragment."""
    found: dict[int, list[str]] = {}
    for fragment in dataset.get_fragments() if any(len(one.values) for one in replaces) else ():
        addresses = set[int]()
        for one in replaces:
            scanner = fragment.scanner(columns=[one.column], filter=one.where, with_row_address=True)
            for batch in scanner.to_batches():
                mask = pc.is_in(batch.column(one.column), value_set=one.values)
                addresses.update(batch.column("_rowaddr").filter(mask).to_pylist())
        if addresses:
            found[fragment.fragment_id] = [str(address) for address in sorted(addresses)]
    return found
