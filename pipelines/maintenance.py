"""The maintenance jobs of a store: `penult verify` checks it, `doctor` repairs, `gc` cleans up, `copy` copies it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import PurePath
from typing import Any

from featurestore import aliases, layout
from featurestore.errors import HeadError, StoreCorrupt, StoreNotFound
from featurestore.limits import check_amount
from featurestore.maintenance import gc as collection
from featurestore.maintenance import repair
from featurestore.maintenance.removal import forget_removed
from featurestore.maintenance.transfer import Copied, copy_store
from featurestore.maintenance.verify import Finding, Progress, is_store, tables_of
from featurestore.maintenance.verify import verify as verify_tables
from featurestore.runs import RunRecord
from featurestore.snapshot import Snapshot
from featurestore.storage.base import location
from featurestore.storage.files import exists, is_file, listed, read_sealed, sha256_of, size_of
from featurestore.storage.lock import locked
from featurestore.storage.npz import read_npz
from featurestore.store import FeatureStore
from heads import artifact
from pipelines.backbones import foreign
from pipelines.run_kinds import kind_of

DIGEST = re.compile("[0-9a-f]{64}")


def verify(store: str | PurePath, progress: Progress = lambda _done, _total: None) -> list[Finding]:
    """Find all damage in a store: tables, journals, run records, heads, fine-tuned backbones, kept outcomes of fits.

    Raises:
        StoreNotFound: the folder is not a store.
        FormatError: a newer penult wrote the store.
    """
    path = _existing(store)
    return [*verify_tables(path, progress), *(finding for finding, _ in _damaged_artifacts(path))]


@dataclass
class DoctorResult:
    """What was repaired; ``to_json`` is the contract of ``--json``.

    Attributes:
        repairs: repairs of the header, the tables and the journals.
        artifacts: paths of all other files and folders that were put aside, relative to the store.
        embedded: how many images were embedded again.
        todo: what the user must do, as sentences.
    """

    repairs: list[repair.Repair] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    embedded: int = 0
    todo: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``penult doctor --json`` prints."""
        return asdict(self)


def doctor(store: str | PurePath, progress: Callable[[int, int], None] | None = None) -> DoctorResult:
    """Repair a store; embed and label again only what is lost, from the sources that the store's runs name.

    Damaged files are moved to ``STORE/damaged``. In a store without damage, only the finished shards of dead runs are
    committed. A repair that was killed is completed by the next call.

    Args:
        store: the store's folder.
        progress: called with the number of images embedded again, and how many there are in all.

    Raises:
        StoreNotFound: the folder is not a store.
        StoreLocked: another run holds the store's lock.
        FormatError: a newer penult wrote the store.
    """
    path = _existing(store)
    with locked(path):
        plan, repairs = repair.repair(path)
        result = DoctorResult(repairs, todo=_stale(repairs))
        _put_aside_artifacts(path, result)
        FeatureStore(path).recover()
    if plan is None:
        return result
    if plan.lost:
        from pipelines.recovery import restore

        before = _rows(path)
        result.embedded, problems = restore(path, plan.lost, progress)
        result.todo += problems
        now = _rows(path)
        for one in repairs:
            came = min(one.lost, now.get(one.table, 0) - before.get(one.table, 0))
            one.restored, one.lost = one.restored + came, one.lost - came
    with locked(path):
        repair.finish(path, plan)
    return result


def gc(store: str | PurePath, older_than: float) -> dict[str, int]:
    """Remove what no run needs any more, and merge small files; see ``featurestore.maintenance.gc.collect``.

    Images that no source has listed for ``older_than`` seconds are forgotten, with their features.

    Returns:
        Bytes freed by kind, and under "removed images" how many images were forgotten.

    Raises:
        UsageError: ``older_than`` is not a number of seconds.
        StoreLocked: another run holds the store's lock.
    """
    check_amount("--older-than in seconds", older_than)
    opened = FeatureStore(store)
    with opened.lock():
        opened.recover()
        opened.remember()  # readers open the versions noted here, so note the newest before old ones are removed
        forgotten = forget_removed(opened, older_than)
        freed = collection.collect(opened.path, list(tables_of(opened.path).values()), older_than)
        opened.remember()
    return freed | {"removed images": forgotten}


def copy(store: str | PurePath, to: str | PurePath, progress: Progress = lambda _done, _total: None) -> Copied:
    """Copy a store to another place, a folder or a bucket; see ``featurestore.maintenance.transfer.copy_store``."""
    return copy_store(_existing(store), location(to), progress)


def _existing(store: str | PurePath) -> PurePath:
    if not is_store(path := location(store)):
        raise StoreNotFound(f"There is no penult store at {path}.")
    return path


def _stale(repairs: list[repair.Repair]) -> list[str]:
    """Return what the user must do where a table went back to an older version and lost rows of newer ones."""
    again = {layout.CATALOG: "`penult embed`", layout.LABELS: "`penult label` or `embed`"}
    told = [one for one in repairs if one.table in again and one.back_to is not None and one.lost]
    return [f"{again[one.table]} what has changed lately: {one.table} is as it was before that." for one in told]


def _rows(store: PurePath) -> dict[str, int]:
    return {name: table.count() for name, table in tables_of(store).items() if table.exists()}


def _put_aside_artifacts(store: PurePath, result: DoctorResult) -> None:
    """Put aside damaged files that runs made, with the files that are useless without them."""
    aside = repair.aside_of(store)
    for finding, together in list(_damaged_artifacts(store)):
        for path in filter(exists, together):
            repair.put_aside(path, aside / path.relative_to(store))
            result.artifacts.append(path.relative_to(store).as_posix())
        if finding.path.startswith(layout.ALIASES):
            result.todo.append(f"`penult promote` again: {finding.path} was damaged.")
        if finding.path.startswith(f"{layout.BACKBONES}/{layout.MODELS}/"):
            result.todo.append(f"`penult backbones add` again: {finding.path}, its graph or its model was damaged.")
        if (kind := kind_of(_made_by(finding.path))).makes_head:
            result.todo.append(
                f"`penult {kind.name}` again: {finding.path} was damaged, and what it belongs to is put aside."
            )


def _made_by(path: str) -> str:
    """Return the kind of run that made a damaged path; "" for kept outcomes, aliases, nights and weights files."""
    folder, name = path.split("/")[:2]
    if folder == layout.RUNS:
        return name.partition("-")[2].partition("-")[0]
    by_people = name == layout.MODELS or name.endswith(layout.WEIGHTS)
    return "" if by_people or folder in (layout.RESULTS, layout.ALIASES, layout.NIGHTS) else "finetune"


def _damaged_artifacts(store: PurePath) -> Iterator[tuple[Finding, list[PurePath]]]:
    """Yield the damage in files that runs made, each finding with all paths to put aside for it."""

    def tried(
        path: PurePath, together: list[PurePath], check: Callable[[], object]
    ) -> Iterator[tuple[Finding, list[PurePath]]]:
        try:
            check()
        except (StoreCorrupt, StoreNotFound, HeadError) as error:  # other errors do not mean damage
            yield Finding(path.relative_to(store).as_posix(), str(error)), together

    made = listed(store / layout.BACKBONES)
    descriptions = {path for path in made if path.suffix == layout.JSON}
    for path in _in_each(store / layout.RUNS, layout.RECORD):
        folder, kind = path.parent, kind_of(_made_by(path.relative_to(store).as_posix()))
        yield from tried(path, [folder], partial(RunRecord.read, folder))
        if kind.makes_head:
            yield from tried(folder / artifact.DESCRIPTION, [folder], partial(_check_head, folder))
        if kind.makes_backbone:
            descriptions.add(layout.backbone(store, folder.name))
    for path in sorted(descriptions):
        yield from tried(path, [path, layout.run(store, path.stem)], partial(_check_backbone, path))
    for path in (path for path in made if path.name.endswith(layout.WEIGHTS)):
        yield from tried(path, [path], partial(_check_weights, path))
    for path in (path for path in listed(layout.models(store)) if path.suffix == layout.JSON):
        yield from tried(path, foreign.files_of(path), partial(foreign.check, path))
    for name in aliases.names(store):
        path = layout.alias(store, name)
        yield from tried(path, [path], partial(_check_alias, store, name))
    kept = (path for folder in listed(store / layout.RESULTS) for path in listed(folder))
    for path in (path for path in kept if path.suffix == layout.JSON):
        yield from tried(path, [path], partial(_check_outcome, path))
    for path in _in_each(layout.kept_heads(store), artifact.DESCRIPTION):
        yield from tried(path, [path.parent], partial(artifact.load, path.parent))
    for path in (path for path in listed(store / layout.NIGHTS) if path.suffix == layout.JSON):
        yield from tried(path, [path], partial(read_sealed, path, required=True))
    for path in _in_each(store / layout.FINETUNINGS, layout.BEGUN):
        yield from tried(path, [path.parent], partial(read_sealed, path))
    for path in _in_each(store / layout.FINETUNINGS, layout.CHECKPOINT):
        yield from tried(path, [path.parent], partial(read_npz, path, size_of(path) or 0))


def _in_each(folder: PurePath, name: str) -> list[PurePath]:
    """Return the paths of the files of this name in the folders of a folder, sorted."""
    return [inner / name for inner in listed(folder) if exists(inner / name)]


def _check_head(folder: PurePath) -> None:
    """Raise StoreCorrupt or another error of ``artifact.load`` unless a head and what it was made from are intact."""
    _, meta = artifact.load(folder)
    if "labelled" in meta:  # older heads lack it
        Snapshot.read(folder, str(meta["labelled"]))


def _check_backbone(description: PurePath) -> None:
    """Raise StoreCorrupt unless a backbone's description is intact and names this backbone, and its weights match."""
    told = read_sealed(description)
    digest = str(told.get("sha256"))
    if told.get("id") != description.stem or not DIGEST.fullmatch(digest):
        raise StoreCorrupt(f"Expected: the description of backbone {description.stem} in {description}. Got: another.")
    _check_weights(description.with_name(digest + layout.WEIGHTS))


def _check_weights(path: PurePath) -> None:
    """Raise StoreCorrupt if a weights file has another sha256 than its name says; partial files have no such name."""
    digest = path.name.removesuffix(layout.WEIGHTS)
    if DIGEST.fullmatch(digest) and (found := sha256_of(path)) != digest:
        raise StoreCorrupt(f"{path}: Expected: sha256 {digest}. Got: {found}.")


def _check_alias(store: PurePath, name: str) -> None:
    """Raise StoreCorrupt unless an alias's file is intact and its head is in the store."""
    head_id = aliases.resolve(store, name)
    if head_id is None or not is_file(layout.run(store, head_id) / layout.HEAD):
        raise StoreCorrupt(f"Expected: the head that the alias {name} points at. Got: no head {head_id}.")


def _check_outcome(path: PurePath) -> None:
    """Raise StoreCorrupt unless a kept outcome is intact and holds the key that its file is named after."""
    if (key := read_sealed(path, required=True).get("key", path.stem)) != path.stem:  # older files have no key
        raise StoreCorrupt(f"Expected: the outcome {path.stem} in {path}. Got: {key}.")
