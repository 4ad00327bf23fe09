"""What holds of a store after every fault: checked from its files alone, with none of penult's code.

Tables are read with Lance alone (lancedb, which a user may take, needs two seconds to be imported); the header, the
digests and the checksum of a row are worked out anew from what the README says of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
VIEWS = "-views"
SHA256 = re.compile(r"[0-9a-f]{64}")


def check(
    store: Path,
    expected: Mapping[str, bytes | str],
    vectors: Mapping[str, np.ndarray] | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    sets: Iterable[str] | None = None,
    former: Iterable[str] = (),
    tolerance: float = 0.0,
) -> None:
    """Raise AssertionError unless the store holds exactly what is expected, each once, and nothing is pending.

    Args:
        store: its folder; no run may be under way.
        expected: for each uri its content, or the sha256 of it in hex, or the word of the failure to read it.
        vectors: for each sha256, in hex, the vector of its first view.
        labels: for each uri its label in the label set "default"; no others may be there.
        sets: feature sets that must be there and be whole; by default all that are there, and one at least.
        former: sha256, in hex, of contents that were embedded once, and whose files have changed since.
        tolerance: how far a vector's numbers may be from those expected.
    """
    sound(store)
    digests = {uri: digest for uri, what in expected.items() if (digest := _digest(what)) is not None}
    words = {uri: what for uri, what in expected.items() if uri not in digests}
    catalog = rows_of(store / "catalog.lance")
    ok = {row["uri"]: row["sha256"].hex() for row in catalog if row["status"] == "ok"}
    failed = {row["uri"]: row["error_type"] for row in catalog if row["status"] != "ok"}
    _same("catalog, embedded", ok, digests)
    _same("catalog, failed", failed, words)
    there = [path.stem for path in tables(store / "features")]
    assert there or not digests, "no feature set is there"
    for name in there if sets is None else sets:
        _features(store / "features" / f"{name}.lance", {*digests.values(), *former}, vectors, tolerance)
    if labels is not None:
        _same("labels", said(store, "default"), dict(labels))
    known = json.loads((store / "penult.json").read_bytes())["tables"]
    for table in [*tables(store), *tables(store / "features")]:
        name = table.relative_to(store).as_posix()
        assert name in known or not _open(table).count_rows(), f"penult.json does not know of {name}"
    nothing_pending(store)


def sound(store: Path) -> None:
    """Raise AssertionError unless what the store holds now agrees with itself; it may lack what no run has finished.

    This holds at every moment, also between a kill and the next run.
    """
    header = sealed(store / "penult.json")
    assert isinstance(header["format_version"], int) and isinstance(header["tables"], dict), f"penult.json: {header}"
    for name, last in header["tables"].items():
        _not_older(store / name, last)
    for table in [*tables(store), *tables(store / "features")]:
        _ledger(table)
    catalog = rows_of(store / "catalog.lance")
    _once("catalog row", (row["uri"] for row in catalog))
    silent = [row["uri"] for row in catalog if row["status"] != "ok" and not row["error"]]
    assert not silent, f"catalog: these failed and do not say why: {silent}"
    _once("label", ((row["label_set"], row["source"], row["uri"]) for row in rows_of(store / "labels.lance")))
    for alias in (store / "aliases").glob("*.json"):
        told = sealed(alias)
        assert told["name"] == alias.stem and all(move["moved"] for move in told["moves"]), f"{alias}: {told}"
        head = told["moves"][-1]["head_id"]
        assert (store / "runs" / head / "head.json").exists(), f"{alias.stem} is a head that is not there: {head}"
    embedded = set()
    for table in tables(store / "features"):
        rows = rows_of(table)
        if (table / "canary.json").exists():
            assert sealed(table / "canary.json")["set"] == table.stem, f"{table.stem}: another set's canary"
        _once(f"row of {table.stem}", ((row["sha256"].hex(), row["view"]) for row in rows))
        sums = [checksum(row["sha256"], row["view"], row["vector"]) for row in rows]
        wrong = [row["sha256"].hex() for row, total in zip(rows, sums, strict=True) if total != row["checksum"]]
        assert not wrong, f"{table.stem}: wrong checksums for {wrong}"
        embedded |= {row["sha256"] for row in rows}
    gone = removed(store)  # of these gc takes the features first
    ok = [row for row in catalog if row["status"] == "ok" and row["uri"] not in gone]
    bare = [row["uri"] for row in ok if row["sha256"] not in embedded]
    assert not bare, f"the catalog says that these are embedded, and no set has them: {bare}"


def said(store: Path, label_set: str) -> dict[str, str]:
    """The label of each image that counts: what people said, else the newest that a source says which lists it."""
    rows = [
        row for row in rows_of(store / "labels.lance") if row["label_set"] == label_set and row["listed"] is not False
    ]
    labels = {}
    for row in sorted(rows, key=lambda row: (row["source"] == "", row["run_id"])):
        if row["label"] is not None:
            labels[row["uri"]] = row["label"]
    gone = removed(store)
    return {uri: label for uri, label in labels.items() if uri not in gone}


def people(store: Path, label_set: str) -> dict[str, str]:
    """The labels that people gave."""
    rows = rows_of(store / "labels.lance")
    own = [row for row in rows if row["source"] == "" and row["label_set"] == label_set]
    return {row["uri"]: row["label"] for row in own if row["label"] is not None}


def removed(store: Path) -> set[str]:
    """Images that sources have listed, and that none lists any more."""
    rows = [row for row in rows_of(store / "labels.lance") if row["source"] != ""]
    listed = {row["uri"] for row in rows if row["listed"] is not False}
    return {row["uri"] for row in rows} - listed


def folder_contents(corpus: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """What ``check`` is to expect of a folder with one sub-folder per class: contents and labels by uri."""
    files = {path.as_uri(): path for path in sorted(corpus.resolve().rglob("*")) if path.is_file()}
    contents = {uri: path.read_bytes() for uri, path in files.items()}
    return contents, {uri: path.relative_to(corpus.resolve()).parts[0] for uri, path in files.items()}


def champions(store: Path) -> tuple[str, ...]:
    """Ids of the heads that the champion has been, the one in use last."""
    return tuple(move["head_id"] for move in sealed(store / "aliases" / "champion.json")["moves"])


def stored_vectors(store: Path, feature_set: str | None = None) -> dict[str, np.ndarray]:
    """The vectors of the first view of a set, by default the only one, by sha256 in hex."""
    name = f"{feature_set or '*'}.lance"
    (path,) = (path for path in (store / "features").glob(name) if feature_set or VIEWS not in path.name)
    rows = rows_of(path)
    first = min((row["view"] for row in rows), default=0)
    return {row["sha256"].hex(): np.array(row["vector"]) for row in rows if row["view"] == first}


def nothing_pending(store: Path) -> None:
    """Raise AssertionError where a run has left its journal, or a file that was never finished."""
    staging = store / "staging"
    left = sorted(path.name for path in staging.iterdir()) if staging.is_dir() else []
    assert not left, f"staging still holds {left}"


def orphans(store: Path) -> list[Path]:
    """Files that no table's latest version refers to, and temporary ones: none are left after ``penult gc``."""
    found = [path for path in store.rglob("*") if path.name.endswith(".tmp") or path.name.startswith(".tmp")]
    for table in [*tables(store), *tables(store / "features")]:
        fragments = _open(table).get_fragments()
        used = {Path(file.path).name for fragment in fragments for file in fragment.data_files()}
        found += [path for path in (table / "data").glob("*") if path.name not in used]
    return sorted(set(found))


def sealed(path: Path) -> dict[str, Any]:
    """What a file says that is sealed by a digest of its own content; raises AssertionError where that is wrong."""
    told = json.loads(path.read_bytes())
    seal = told.pop("seal")
    plain = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert seal == hashlib.sha256(plain.encode()).hexdigest(), f"{path}: its seal does not match"
    return told


def rows_of(table: Path) -> list[dict[str, Any]]:
    """All rows of a table, vectors as numpy arrays in the stored dtype."""
    arrow: pa.Table = _open(table).to_table()
    rows = arrow.to_pylist() if "vector" not in arrow.column_names else arrow.drop(["vector"]).to_pylist()
    if "vector" in arrow.column_names:
        width = arrow.schema.field("vector").type.list_size
        chunks = [chunk.flatten().to_numpy().reshape(-1, width) for chunk in arrow.column("vector").chunks]
        for row, vector in zip(rows, np.concatenate(chunks) if chunks else [], strict=True):
            row["vector"] = vector
    return rows


def checksum(key: bytes, view: int, vector: np.ndarray) -> int:
    """The checksum of a row: a constant and the words of key, view and vector, each times an odd pseudo-random one."""
    raw = vector.tobytes()
    raw += bytes(-len(raw) % 4)
    words = [*np.frombuffer(key, "<u4").tolist(), view, *np.frombuffer(raw, "<u4").tolist()]
    total, state = GOLDEN, 0
    for word in words:
        state = (state + GOLDEN) & MASK
        total += word * (_mixed(state) | 1)
    return total & MASK


def _mixed(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def _features(path: Path, digests: set[str], vectors: Mapping[str, np.ndarray] | None, tolerance: float) -> None:
    rows = rows_of(path)
    views = {row["view"] for row in rows} or {0}
    wanted = {(digest, view) for digest in digests for view in views}
    _same(f"features of {path.stem}", {(row["sha256"].hex(), row["view"]) for row in rows}, wanted)
    if vectors is None:
        return
    for row in rows:
        if row["view"] == min(views):
            right = np.asarray(vectors[row["sha256"].hex()], np.float64)
            off = np.abs(row["vector"].astype(np.float64) - right).max()
            assert off <= tolerance, f"{path.stem}: the vector of {row['sha256'].hex()} is off by {off}"


def _ledger(table: Path) -> None:
    """Every file that the table's ledger names has its sha256, unless it was cleaned up as no version needs it."""
    path = table / "ledger.json"
    if not path.exists():
        return
    told = sealed(path)
    for name, digest in told["files"].items():
        if not (table / name).exists():
            continue
        found = hashlib.sha256((table / name).read_bytes()).hexdigest()
        assert found == digest, f"{table / name}: Expected: sha256 {digest}. Got: {found}."
    assert told["version"] <= _open(table).version, f"{table}: its ledger knows version {told['version']}"


def _not_older(path: Path, last: Mapping[str, Any]) -> None:
    table = _open(path)
    found, known = (table.version, table.count_rows()), (last["version"], last["rows"])
    right = found == known or found[0] > known[0]
    assert right, f"{path.name}: version and rows are {found}, penult.json knows {known}"


def tables(folder: Path) -> list[Path]:
    """Folders of tables; one without a manifest is of a table that was never made."""
    return sorted({path.parents[1] for path in folder.glob("*.lance/_versions/*.manifest")})


def _open(path: Path) -> Any:
    return lance.dataset(path)


def _digest(what: bytes | str) -> str | None:
    if isinstance(what, bytes):
        return hashlib.sha256(what).hexdigest()
    return what if SHA256.fullmatch(what) else None


def _once(what: str, keys: Iterable[Any]) -> None:
    twice = [key for key, times in Counter(keys).items() if times > 1]
    assert not twice, f"more than one {what} for {twice[:5]} ({len(twice)} in all)"


def _same(what: str, found: Any, wanted: Any) -> None:
    """Raise AssertionError, with examples, unless two sets or mappings are equal."""
    if found == wanted:
        return
    lost, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    other = []
    if isinstance(found, dict):
        other = [(key, found[key], wanted[key]) for key in found if key in wanted and found[key] != wanted[key]]
    raise AssertionError(
        f"{what}: {len(lost)} lost, {len(extra)} too many, {len(other)} different; for example "
        f"lost {lost[:3]}, too many {extra[:3]}, different {other[:3]}"
    )
