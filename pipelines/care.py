"""Check a store, repair it, clean it up: `penult verify`, `doctor` and `gc`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from featurestore import upkeep
from featurestore.errors import PenultError, StoreNotFound
from featurestore.files import read_sealed, sha256_of
from featurestore.header import NAME as HEADER
from featurestore.lock import locked
from featurestore.repair import Repair, aside_of, put_aside, repair
from featurestore.runs import RunRecord
from featurestore.store import FeatureStore
from featurestore.verify import Finding, Progress, tables_of
from featurestore.verify import verify as verify_tables
from heads import artifact
from pipelines.augment import Augmentation
from pipelines.embed import EmbedOptions, embed
from pipelines.labels import import_labels

LABELS = "labels.lance"


def verify(store: str | Path, progress: Progress = lambda _done, _total: None) -> list[Finding]:
    """Find all damage to a store: tables, journals, run records, heads, fine-tuned backbones, kept outcomes.

    Raises:
        StoreNotFound: the folder is no store.
        FormatError: it was written by a newer penult.
    """
    return [*verify_tables(Path(store), progress), *_damaged_artifacts(Path(store))]


@dataclass
class DoctorResult:
    """What was repaired; ``to_json`` is the contract of ``--json``.

    Attributes:
        repairs: of tables and journals.
        artifacts: damaged files that were put aside, relative to the store.
        embedded: images that were embedded anew.
        todo: what only the user can do.
    """

    repairs: list[Repair] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    embedded: int = 0
    todo: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The object that ``penult doctor --json`` prints."""
        return asdict(self)


def doctor(store: str | Path, progress: Progress | None = None) -> DoctorResult:
    """Repair a store; what features are lost are embedded anew, from the sources of its runs.

    Damaged files are put aside under ``STORE/damaged``. Nothing is done to a store without damage.

    Args:
        store: its folder.
        progress: of what is embedded anew: images done, images in all.

    Raises:
        StoreNotFound: the folder is no store.
        StoreLocked: another run holds it.
    """
    path = Path(store)
    if not any((path / name).exists() for name in (HEADER, "catalog.lance")):
        raise StoreNotFound(f"There is no penult store at {path}.")
    result = DoctorResult()
    with locked(path):
        result.repairs = repair(path)
        aside = aside_of(path)
        for finding in list(_damaged_artifacts(path)):
            for file in _belonging(path / finding.path):
                put_aside(file, aside / file.relative_to(path))
                result.artifacts.append(file.relative_to(path).as_posix())
            result.todo.append(f"{finding.path} is put aside ({finding.problem}): run again what made it.")
        FeatureStore(path).recover()
    _replay(path, result, progress)
    return result


def gc(store: str | Path, older_than: float) -> dict[str, int]:
    """Remove what no run needs any more, and merge small files; see ``featurestore.upkeep.collect``.

    Raises:
        StoreLocked: another run holds the store.
    """
    opened = FeatureStore(store)
    with opened.lock():
        opened.recover()
        freed = upkeep.collect(opened.path, tables_of(opened.path), older_than)
        opened.remember()
    return freed


def _replay(store: Path, result: DoctorResult, progress: Progress | None) -> None:
    """Embed anew what was lost, and import lost labels, by the runs' own records in their order."""
    lost = {repaired.table for repaired in result.repairs if repaired.lost}
    if not lost:
        return
    whole = not lost.isdisjoint({LABELS, "catalog.lance"})
    for record in FeatureStore(store).runs():
        again = _again(store, record, progress)
        if again is None:
            continue
        name = f"features/{record.result['feature_set']}.lance" if record.kind == "embed" else LABELS
        if name not in lost and not whole:
            continue
        try:
            result.embedded += again()
        except (PenultError, OSError) as error:
            source = record.parameters.get("source", record.parameters.get("file"))
            result.todo.append(f"`penult {record.kind} {source}` must be run again ({error}).")


def _again(store: Path, record: RunRecord, progress: Progress | None) -> Callable[[], int] | None:
    """What does again what an embed or a label run did; it says how many images it embedded."""
    told = dict(record.parameters)
    if record.kind == "label":
        return lambda: 0 * import_labels(told["file"], store, told["label_set"]).rows
    if record.kind != "embed":
        return None
    source, drawn = told.pop("source"), told.pop("augmentation", None)
    options = EmbedOptions(
        **{**told, "runner_arguments": tuple(told["runner_arguments"])},
        augmentation=Augmentation(**drawn) if drawn else None,
    )
    return lambda: embed(source, store, options, progress).embedded


def _damaged_artifacts(store: Path) -> Iterator[Finding]:
    """Run records, heads, kept outcomes and fine-tuned backbones that are not what was written."""
    for folder in sorted((store / "runs").glob("*")):
        for name, read in (("run.json", RunRecord.read), (artifact.DESCRIPTION, artifact.load)):
            if (folder / name).exists():
                yield from _tried(store, folder / name, functools.partial(read, folder))
    for path in sorted([*store.glob("results/*/*.json"), *store.glob("backbones/*.json")]):
        yield from _tried(store, path, functools.partial(read_sealed, path))
    for path in sorted(store.glob("backbones/*.weights.h5")):
        if (actual := sha256_of(path)) != path.name.split(".")[0]:
            yield Finding(path.relative_to(store).as_posix(), f"its sha256 is {actual[:12]}")


def _tried(store: Path, path: Path, read: Callable[[], object]) -> Iterator[Finding]:
    try:
        read()
    except PenultError as error:
        yield Finding(path.relative_to(store).as_posix(), str(error))


def _belonging(path: Path) -> list[Path]:
    """The files that are of no use without this one, and itself."""
    if path.name == artifact.DESCRIPTION:
        return [file for file in (path, path.with_name(artifact.ARRAYS)) if file.exists()]
    return [path]
