"""Rot: bits flip and bytes go in files that lay still, one file at a time and two at once.

A store with every kind of file is made once; a trial spoils a copy of it. What then holds:

====================================  ===============================  ============================================
file                                  ``penult verify``                reading; ``penult doctor``
====================================  ===============================  ============================================
penult.json                           names it                         refuses; it is made anew
a ledger                              names it                         refuses unless it is gone; it is made anew
a canary of a feature set             names it, unless gone            refuses to embed; it is made anew once stored
                                                                       images, embedded again, agree
the newest manifest of a table        names it, or the table           refuses; every row comes back from the files
older manifests, transactions         names them, unless gone          is as before; they are put aside
data, deletions: catalog, labels      names them                       refuses; rows come back from the sources,
                                                                       and none is embedded
data of features                      names them, and the images       refuses a row that is wrong; the rows that
                                                                       were damaged are embedded anew, no others
a run's record                        names it, unless gone            refuses to list runs; the run is put aside
a head: head.json, head.npz           names it                         refuses that head; the run is put aside, and
                                                                       the user told to make it again
a backbone: description, weights      names it                         features are served; put aside likewise
an outcome kept by compare            names it, unless gone            counts as none; put aside
an unfinished fine-tuning             names it, unless gone            is as before; put aside, it begins anew
a dead run's journal, staged data     names it, unless it is gone      is as before; what is damaged is put aside
                                      and stands for no finished work  and embedded by the next run
a report, a lock, Lance's hint        nothing                          is as before; nothing
====================================  ===============================  ============================================

Reading gives what it gave before or refuses with a sentence that says what to do. After doctor, verify finds nothing,
a second doctor does nothing, all rows that have a source are what they were, and the next run embeds only what is new.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import lance
import numpy as np
from lance.file import LanceFileReader

from conftest import CountingEngine, write_picture
from faults import Faults, child, invariant, own_folder
from faults.warm import Forked
from featurestore import layout
from featurestore.errors import PenultError
from featurestore.header import FORMAT_VERSION
from featurestore.runs import RunRecord, new_run_id, utc_now
from featurestore.storage.files import write_sealed
from featurestore.storage.npz import read_npz, write_npz
from featurestore.store import FeatureStore
from heads import artifact
from heads.comparison.search import from_options
from pipelines import maintenance
from pipelines import predict as predicting
from pipelines.backbones import finetuned
from pipelines.backbones.canary import STORED
from pipelines.backbones.table import resolve
from pipelines.embedding import worker
from pipelines.embedding.embed import embed
from pipelines.embedding.labels import import_labels
from pipelines.images.augmentation import Augmentation
from pipelines.options import CompareOptions, EmbedOptions, TrainOptions
from pipelines.predict import predict
from pipelines.training import compare_heads, train_head

PATIENCE = 300  # seconds that no doctor takes
SHARD, VIEWS = 7, 3
NEW = 3  # images in the corpus that no run has seen
HOW = ("flip", "empty", "half", "short", "grow", "zero", "delete", "swap")
KINDS = {
    "header": r"penult\.json",
    "ledger": r".*/ledger\.json",
    "canary": r".*/canary\.json",
    "manifest": r".*/_versions/\d+\.manifest",
    "hint": r".*/_versions/latest_version_hint\.json",
    "transaction": r".*/_transactions/.*",
    "deletions": r".*/_deletions/.*",
    "catalog": r"catalog\.lance/data/.*",
    "labels": r"labels\.lance/data/.*",
    "views": r"features/.*-views\.lance/data/.*",
    "features": r"features/.*/data/.*",
    "record": r"runs/.*/run\.json",
    "head": r"runs/.*/head\.json",
    "arrays": r"runs/.*/head\.npz",
    "labelled": r"runs/.*/labelled\.npz",
    "report": r"runs/.*/report\.html",
    "outcome": r"results/.*",
    "description": r"backbones/.*\.json",
    "graph": r"backbones/models/.*\.(xml|bin|zip)",
    "weights": r"backbones/.*\.h5",
    "begun": r"finetune/.*/begun\.json",
    "checkpoint": r"finetune/.*/checkpoint\.npz",
    "lock": r"(finetune/.*/)?lock",
    "journal": r"staging/[^/]*/run\.json",
    "plan": r"staging/[^/]*/plan\.arrow",
    "planned labels": r"staging/[^/]*/labels\.arrow",
    "entry": r"staging/.*/shards/\d+\.json",
    "rows": r"staging/.*/shards/.*\.arrow",
    "progress": r"staging/.*\.progress",
}
FEATURES = ("features", "views")
NO_DATA = ("report", "lock", "hint", "progress")
MAY_GO = (
    *("older manifest", "older data", "transaction", "canary"),
    *("record", "outcome", "begun", "checkpoint", "journal", "entry"),
)
WHEN = ("before", "after")
KILLS = {  # points of a doctor, and how often it passes by
    "os:fsync": 70,
    "pathlib:Path.replace": 20,
    "pathlib:Path.rename": 2,
    "featurestore.storage.table:Table.swap": 2,
    "featurestore.header:remember": 3,
    "featurestore.store:FeatureStore.commit": 1,
}
WORK = ("header", "ledger", "manifest", "catalog", "labels", "deletions", *FEATURES)  # kinds that cost doctor some


@dataclass(frozen=True)
class Fault:
    """What happens to one file of a store; ``other`` is the one that it changes places with."""

    path: str
    how: str
    kind: str
    seed: int = 0
    other: str = ""

    def __str__(self) -> str:
        return f"{self.how} {self.kind} {self.path}"

    def befall(self, store: Path) -> None:
        """Spoil the file."""
        path, choose = store / self.path, random.Random(self.seed)
        data = path.read_bytes()
        if self.how == "delete":
            path.unlink()
        elif self.how == "swap":
            path.write_bytes((store / self.other).read_bytes())
            (store / self.other).write_bytes(data)
        else:
            path.write_bytes(_spoilt(data, self.how, choose))


def _spoilt(data: bytes, how: str, choose: random.Random) -> bytes:
    if how == "flip" and data:
        at = choose.randrange(8 * len(data))
        return data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :]
    return {
        "flip": data,
        "empty": b"",
        "half": data[: len(data) // 2],
        "short": data[:-1],
        "grow": data + choose.randbytes(choose.randrange(1, 100)),
        "zero": bytes(len(data)),
    }[how]


# -- the store ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Template:
    """What trials copy, and what they compare with.

    Attributes:
        corpus: a folder with ``NEW`` images that no run has seen.
        others: a manifest of images that a killed run was embedding, in the store "pending" alone.
        main: the feature set of the whole corpus; there are a set of a part of it and one of views besides.
        heads: ids of runs that have one.
        known: images that the main set holds.
        rows: of each feature set, vectors by content (hex) and view.
        labels: by uri.
        contents: sha256 in hex, or the failure, by uri, of what the catalog holds.
        vectors: by content, of all images that there are.
        answers: what reading gives.
    """

    corpus: Path
    others: Path
    main: str
    heads: list[str]
    known: list[str]
    rows: dict[str, dict[tuple[str, int], np.ndarray]]
    labels: dict[str, str]
    contents: dict[str, str]
    vectors: dict[str, np.ndarray]
    answers: dict[str, Any]


@contextmanager
def counting() -> Iterator[CountingEngine]:
    """An engine that costs nothing in place of the CNN, in this process."""
    engine = CountingEngine(batch_size=8)
    worker.engine_for.cache_clear()
    with ExitStack() as patches:
        for module in (worker, predicting):
            patches.enter_context(mock.patch.object(module, "open_engine", lambda *_args, **_options: engine))
        yield engine
    worker.engine_for.cache_clear()


@cache
def made() -> Path:
    """Make the stores in a folder that lasts as long as this process."""
    folder = own_folder()
    with counting():
        (folder / "template").write_bytes(pickle.dumps(_make(folder)))
    return folder


@cache
def template(folder: Path) -> Template:
    """Read once per process."""
    found = pickle.loads((folder / "template").read_bytes())
    assert isinstance(found, Template)
    return found


def _make(folder: Path) -> Template:
    corpus, store = folder / "corpus", folder / "store"
    pictures = [write_picture(corpus / "abc"[number % 3] / f"{number:02}.png", number) for number in range(30)]
    shutil.copy(pictures[0], corpus / "b" / "copy.png")
    (corpus / "c" / "empty.png").touch()
    part = folder / "part.csv"
    part.write_text("\n".join(["path", *map(str, pictures[::3])]))
    embed(str(part), store, EmbedOptions(dtype="float32"))
    embed(str(corpus), store, EmbedOptions(shard_images=SHARD))
    for number in (3, 4, 5):
        write_picture(pictures[number], 100 + number)
    pictures += [write_picture(corpus / "a" / f"{number}.png", number) for number in range(30, 34)]
    main = embed(str(corpus), store, EmbedOptions(shard_images=SHARD)).feature_set
    drawn = Augmentation(rotation=10.0)
    embed(str(corpus), store, EmbedOptions(shard_images=SHARD, views=VIEWS, augmentation=drawn))
    for step in (1, 3):  # all are labelled anew, and some of them once more
        moved = [f"{path},{'abcd'[('abc'.index(path.parent.name) + step) % 4]}" for path in pictures[::step]]
        (folder / f"labels{step}.csv").write_text("\n".join(["path,label", *moved]))
        import_labels(str(folder / f"labels{step}.csv"), store)
    heads = [train_head(store, TrainOptions("ncm"))["run_id"]]
    heads.append(compare_heads(store, CompareOptions(search=from_options(["ridge", "ncm"])))["run_id"])
    heads.append(_finetuned(store, heads[0], main))
    shutil.copytree(store, folder / "pending")
    others = folder / "others.csv"
    new = [write_picture(folder / "others" / f"{number}.png", number) for number in range(200, 210)]
    others.write_text("\n".join(["path,label", *(f"{path},a" for path in new)]))
    with mock.patch.object(FeatureStore, "commit", side_effect=KeyboardInterrupt), suppress(KeyboardInterrupt):
        embed(str(others), folder / "pending", EmbedOptions(shard_images=SHARD))
    every = folder / "every"
    embed(str(corpus), every)
    for number in range(NEW):
        write_picture(corpus / "a" / f"new{number}.png", 300 + number)
    embed(str(corpus), every)
    embed(str(others), every)
    known = [str(pictures[number]) for number in (0, 4, 31)]
    return Template(
        corpus=corpus,
        others=others,
        main=main,
        heads=heads,
        known=known,
        rows={path.stem: _feature_rows(path) for path in (store / "features").iterdir()},
        labels=invariant.said(store, "default"),
        contents=_catalog(store),
        vectors={**invariant.stored_vectors(every), **invariant.stored_vectors(store, main)},
        answers={name: ask() for name, ask in _questions(store, main, heads, known).items()},
    )


def _finetuned(store: Path, head_id: str, feature_set: str) -> str:
    """What a fine-tuning leaves, with weights that are none, and what an unfinished one does; the first one's id."""
    opened, run_id = FeatureStore(store), new_run_id("finetune")
    head, meta = artifact.load(opened.run_folder(head_id))
    artifact.save(head, opened.run_folder(run_id), meta)
    shutil.copy(opened.run_folder(head_id) / layout.LABELLED, opened.run_folder(run_id))
    finetuned.register(opened, run_id, resolve(), _save_weights, {})
    told = {"feature_set": feature_set, "backbone": f"ft:{run_id}"}
    RunRecord(run_id, "finetune", utc_now(), {"head_id": head_id}, told).write(opened.run_folder(run_id))
    unfinished = store / "finetune" / "0123456789abcdef"
    unfinished.mkdir(parents=True)
    (unfinished / "lock").touch()
    write_sealed(unfinished / "begun.json", {"run_id": new_run_id("finetune"), "started": utc_now()})
    write_npz(unfinished / "checkpoint.npz", {"told": np.array("{}"), "best0": np.arange(100.0)})
    return run_id


def _save_weights(path: Path) -> None:
    path.write_bytes(bytes(range(256)))


def _feature_rows(path: Path) -> dict[tuple[str, int], np.ndarray]:
    return {(row["sha256"].hex(), row["view"]): row["vector"] for row in invariant.rows_of(path)}


def _catalog(store: Path) -> dict[str, str]:
    rows = invariant.rows_of(store / "catalog.lance")
    return {row["uri"]: row["sha256"].hex() if row["status"] == "ok" else row["error_type"] for row in rows}


def _questions(store: Path, main: str, heads: Sequence[str], known: Sequence[str]) -> dict[str, Callable[[], Any]]:
    """What is read from a store, by name."""

    def dataset() -> Any:
        data = FeatureStore(store).dataset(main)
        return data.X.tolist(), data.y.tolist(), data.ids.tolist(), data.splits.tolist()

    def views() -> Any:
        opened = FeatureStore(store)
        train = opened.augmented(opened.dataset(main).part("train"), VIEWS)
        return train.X.tolist(), train.ids.tolist()

    def streamed() -> Any:
        data = FeatureStore(store).dataset(main, memory_limit=64)
        return data.read().X.tolist(), data.ids.tolist()

    def predicted(head: str) -> Any:
        return [asdict(one) for one in predict(list(known), store, head)]

    def newest() -> Any:
        return FeatureStore(store).resolve()

    return {"dataset": dataset, "views": views, "streamed": streamed, "newest": newest} | {
        head: partial(predicted, head) for head in heads
    }


# -- the trials --------------------------------------------------------------------------------------------------------


def spoiled(folder: Path, name: str, faults: Sequence[Fault], trial: Path) -> None:
    """Spoil files of one of the stores in ``folder``; then verify, read, doctor, and embed again."""
    told, store = template(folder), trial / "store"
    shutil.copytree(folder / name, store)
    for fault in faults:
        fault.befall(store)
    with counting() as engine:
        check_named(folder / name, store, faults)
        check_read(told, store, faults)
        assert engine.images <= len(told.heads) * len(told.known), "reading embedded what it was not asked for"
        engine.images = 0
        before = digests(store)
        maintenance.doctor(store)
        if all(fault.kind in NO_DATA for fault in faults) and name == "store":
            assert digests(store) == before, "doctor changed a store without damage"
        check_cost(folder / name, store, faults, engine.images)
        check_repaired(told, store, faults, name == "pending")
        engine.images = 0
        check_converges(told, store, faults, name == "pending", engine)


def killed(folder: Path, faults: Sequence[Fault], strike: Sequence[str], trial: Path) -> None:
    """Spoil files, and kill doctor at some point; the next doctor ends what it began."""
    told, store = template(folder), trial / "store"
    shutil.copytree(folder / "store", store)
    for fault in faults:
        fault.befall(store)
    command = ["--fake", "--at", *strike, "SIGKILL", "doctor", "--store", str(store)]
    with Forked(child.run, command) as process:
        _, said = process.communicate(PATIENCE)
    assert process.returncode in (0, -9), f"doctor ended with {process.returncode}: {said}"
    with counting() as engine:
        check_read(told, store, faults, repaired=True)
        engine.images = 0
        maintenance.doctor(store)
        check_repaired(told, store, faults, False)
        engine.images = 0
        check_converges(told, store, faults, False, engine)


def one_row(folder: Path, path: str, number: int, trial: Path) -> None:
    """Flip a bit of one vector: verify names its image, and doctor embeds that view of it and those after it."""
    told, store = template(folder), trial / "store"
    shutil.copytree(folder / "store", store)
    row = LanceFileReader(str(store / path)).read_all().to_table().slice(number, 1)
    vector = row.column("vector").combine_chunks().flatten().to_numpy().tobytes()
    data = bytearray((store / path).read_bytes())
    assert data.count(vector) == 1
    data[data.index(vector) + number % len(vector)] ^= 1 << number % 8
    (store / path).write_bytes(data)
    fault = Fault(path, "flip", "features")
    with counting() as engine:
        named = [image for finding in maintenance.verify(store) for image in finding.rows]
        assert named == [row.column("sha256")[0].as_py().hex()], f"verify names {named}"
        check_read(told, store, [fault])
        engine.images = 0
        result = maintenance.doctor(store)
        view = row.column("view")[0].as_py()
        known = named[0] in told.contents.values()  # or its file has changed, and there is nothing to embed
        assert engine.images == (0 if not known else VIEWS - view + 1 if view else 1), f"{engine.images} were embedded"
        assert sum(one.lost for one in result.repairs) == (0 if known else 1)
        check_repaired(told, store, [fault], False)


def version_bit(folder: Path, trial: Path) -> None:
    """Flip a bit of the header's format version: it is damage, and not the work of a newer penult."""
    told, store = template(folder), trial / "store"
    shutil.copytree(folder / "store", store)
    text = (store / "penult.json").read_text()
    now, flipped = (f'"format_version": {version},' for version in (FORMAT_VERSION, FORMAT_VERSION ^ 8))
    assert text.count(now) == 1
    (store / "penult.json").write_text(text.replace(now, flipped))
    fault = Fault("penult.json", "flip", "header")
    with counting():
        check_named(folder / "store", store, [fault])
        check_read(told, store, [fault])
        maintenance.doctor(store)
        check_repaired(told, store, [fault], False)


def check_named(whole: Path, store: Path, faults: Sequence[Fault]) -> None:
    """Raise AssertionError where verify misses a damaged file, or tells of one that is not damaged."""
    findings = maintenance.verify(store)
    said = [f"{finding.path}: {finding.problem}" for finding in findings]
    if all(fault.kind in NO_DATA for fault in faults):
        assert not said, f"verify names {said} where there is no damage"
    for fault in faults:
        if fault.kind in NO_DATA or (fault.how == "delete" and fault.kind in MAY_GO):
            continue
        files = [path for path in (fault.path, fault.other) if path]
        named = any(Path(path).name in line for path in files for line in said)
        within = any(path.startswith(f"{finding.path}/") for path in files for finding in findings)
        same = all(_says_the_same((whole / path).read_bytes(), store / path) for path in files)
        hidden = len(faults) > 1 and bool(said)  # one may hide the other until it is repaired
        assert named or within or same or hidden, f"verify does not name {fault}: {said}"


def _says_the_same(before: bytes, path: Path) -> bool:
    """Whether all that is read of a file is what it was; a seal may be unreadable."""
    if not path.exists() or path.read_bytes() == before:
        return path.exists()
    if path.suffix == ".npz":
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "whole.npz").write_bytes(before)
            whole = read_npz(Path(folder) / "whole.npz", len(before))
        try:
            now = read_npz(path, path.stat().st_size)
        except PenultError:
            return False
        return whole.keys() == now.keys() and all((whole[name] == now[name]).all() for name in whole)
    try:
        was, now = json.loads(before), json.loads(path.read_bytes())
    except ValueError:
        return False
    return all(now.get(key) == value for key, value in was.items() if key != "seal")


def check_read(told: Template, store: Path, faults: Sequence[Fault], repaired: bool = False) -> None:
    """Raise AssertionError where reading gives anything but what it gave, or refuses without a sentence to go on.

    ``repaired``: rows may be missing, which an interrupted repair has yet to bring back.
    """
    for name, ask in _questions(store, told.main, told.heads, told.known).items():
        try:
            answer = ask()
        except PenultError as error:
            said = str(error)
            assert "`penult " in said or "remove" in said, f"{name} after {_list(faults)} says not what to do: {said}"
            assert "\n" not in said and "panic" not in said, f"{name}: no sentence for people: {said}"
            continue
        if not repaired:
            assert answer == told.answers[name], f"{name} is another after {_list(faults)}"


def check_cost(whole: Path, store: Path, faults: Sequence[Fault], images: int) -> None:
    """Raise AssertionError where doctor embedded more than the rows that were damaged, and the views after them.

    And where a canary is to be made anew as well, what shows that the set's images come out as they are stored.
    """
    paths = {path for fault in faults if fault.kind in FEATURES for path in (fault.path, fault.other) if path}
    damaged = sum(_damaged_rows(whole, store, path) for path in paths)
    canaries = sum(2 if fault.other else 1 for fault in faults if fault.kind == "canary")
    assert images <= damaged * VIEWS + canaries * STORED, (
        f"{images} images were embedded where {damaged} rows were damaged"
    )


def _damaged_rows(whole: Path, store: Path, path: str) -> int:
    """How many rows a data file held that are not in what is left of it, which doctor has put aside."""
    rows = LanceFileReader(str(whole / path)).read_all().to_table()
    left = [*store.glob(f"damaged/*/{path}")]
    try:
        now = LanceFileReader(str(left[0])).read_all().to_table() if left else rows.slice(0, 0)
    except BaseException:  # lance's panics are no Exceptions
        return rows.num_rows
    if now.schema.metadata != rows.schema.metadata:  # it does not say any more of which set the rows are
        return rows.num_rows
    kept = {(row["sha256"], row["view"], row["checksum"], _bytes(row)) for row in now.to_pylist()}
    return sum((row["sha256"], row["view"], row["checksum"], _bytes(row)) not in kept for row in rows.to_pylist())


def _bytes(row: dict[str, Any]) -> bytes:
    return np.array(row["vector"], np.float32).tobytes()


def check_repaired(told: Template, store: Path, faults: Sequence[Fault], pending: bool) -> None:
    """Raise AssertionError unless doctor has left nothing to do, and everything that has a source is what it was."""
    assert not (found := maintenance.verify(store)), f"after doctor verify finds {found}"
    before = digests(store)
    assert not (again := maintenance.doctor(store)).repairs and not again.artifacts, f"a second doctor found {again}"
    assert digests(store) == before, "a second doctor changed the store"
    catalog = _catalog(store)
    wrong = {uri: what for uri, what in catalog.items() if told.contents.get(uri, what) != what}
    lost = {uri for uri, what in told.contents.items() if uri not in catalog and len(what) == 64}
    assert not wrong and not lost, f"after doctor the catalog is wrong for {wrong} and lacks {lost}"
    current = set(told.contents.values())
    for name, rows in told.rows.items():
        now = _feature_rows(store / "features" / f"{name}.lance")
        lacking = [key for key in rows if key not in now and key[0] in current]
        off = [key for key in rows if key in now and (now[key] != rows[key]).any()]
        assert not lacking and not off, f"after doctor {name} lacks {lacking}, and {off} are others"
    labels = invariant.said(store, "default")
    assert told.labels.items() <= labels.items(), f"after doctor labels are {labels}"
    if not pending:
        spoilt = {Path(path).parts[1] for fault in faults for path in (fault.path, fault.other) if path[:5] == "runs/"}
        asked = _questions(store, told.main, [head for head in told.heads if head not in spoilt], told.known)
        for name, ask in asked.items():
            head = name in told.heads
            if head and not (store / "runs" / name).exists():
                continue  # put aside with its backbone
            assert ask() == told.answers[name], f"{name} is another after doctor"


def check_converges(
    told: Template, store: Path, faults: Sequence[Fault], pending: bool, engine: CountingEngine
) -> None:
    """Raise AssertionError unless the next run embeds what is new, and leaves the store as if nothing had happened.

    Where a canary is gone it embeds some images again besides, to see that they agree.
    """
    again = 0 if (store / "features" / f"{told.main}.lance" / "canary.json").exists() else STORED
    embed(str(told.others if pending else told.corpus), store, EmbedOptions(shard_images=SHARD))
    if pending:
        contents = {**told.contents, **_of_manifest(told.others)}
        labels = {**told.labels, **dict.fromkeys(_of_manifest(told.others), "a")}
    else:
        assert engine.images == NEW + again, f"after doctor the next run embedded {engine.images} images, {NEW} are new"
        files, labels = invariant.folder_contents(told.corpus)
        labels |= {uri: label for uri, label in told.labels.items() if uri in labels}  # people's lie over the folder's
        contents = {uri: _sha256(data) if data else "empty" for uri, data in files.items()}
    maintenance.gc(store, older_than=1e9)  # a ledger may name what is gone and not needed until the next clean-up
    there = {row["sha256"].hex() for row in invariant.rows_of(store / "features" / f"{told.main}.lance")}
    former = there & {key for key, _ in told.rows[told.main]}
    invariant.check(store, contents, told.vectors, labels=labels, sets=[told.main], former=former)


def _of_manifest(manifest: Path) -> dict[str, str]:
    files = [Path(line.split(",")[0]) for line in manifest.read_text().splitlines()[1:]]
    return {path.as_uri(): _sha256(path.read_bytes()) for path in files}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _list(faults: Sequence[Fault]) -> str:
    return " and ".join(map(str, faults))


def digests(store: Path) -> dict[str, str]:
    """Of all files but the lock."""
    files = [path for path in store.rglob("*") if path.is_file() and path != store / "lock"]
    return {path.relative_to(store).as_posix(): _sha256(path.read_bytes()) for path in files}


# -- the faults --------------------------------------------------------------------------------------------------------


def intact(folder: Path, trial: Path) -> None:
    """Doctor changes nothing of a store without damage."""
    shutil.copytree(folder / "store", trial / "store")
    before = digests(trial / "store")
    assert maintenance.verify(trial / "store") == []
    assert maintenance.doctor(trial / "store") == maintenance.DoctorResult()
    assert digests(trial / "store") == before, "doctor changed a store without damage"


def faults(seed: int, count: int) -> Faults:
    """Each way for a file of each kind, and ``count`` more: any file, two at once, and doctor killed at its work."""
    folder = made()
    yield "intact", partial(intact, folder)
    yield "one bit of the format version", partial(version_bit, folder)
    for name in ("store", "pending"):
        files = files_of(folder, name)
        for kind in files:
            for how in HOW:
                fault = a_fault(files, kind, how, random.Random(f"{seed} {name} {kind} {how}"))
                if fault is not None:
                    yield f"{name}: {fault}", partial(spoiled, folder, name, [fault])
    files, choose = files_of(folder, "store"), random.Random(seed)
    for path in (path for kind in FEATURES for path in files[kind]):
        number = choose.randrange(3)
        yield f"one bit of row {number} of {path}", partial(one_row, folder, path, number)
    for path, other in zip(files["features"], files["views"][1:] + files["views"][:1], strict=False):
        fault = Fault(path, "swap", "features", other=other)
        yield f"store: {fault} with views", partial(spoiled, folder, "store", [fault])
    for number in range(count):
        if number % 4:
            kinds = [kind for kind in files if kind not in NO_DATA]
            several = some_faults(files, kinds, 1 + number % 2, choose)
            yield f"{number}: {_list(several)}", partial(spoiled, folder, "store", several)
        else:
            several, point, when = some_faults(files, WORK, 1, choose), choose.choice([*KILLS]), choose.choice(WHEN)
            nth = choose.randrange(KILLS[point]) + 1
            told = f"{number}: {_list(several)}, doctor killed {when} {point} {nth}"
            yield told, partial(killed, folder, several, [point, when, str(nth)])


def files_of(folder: Path, name: str) -> dict[str, list[str]]:
    """The files of one of the stores by their kind; of the one with a journal those alone that the other has not."""
    store = folder / name
    files = sorted(path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file())
    if name == "pending":
        files = [path for path in files if not (folder / "store" / path).exists()]
    in_use = _in_use(store)
    kinds: dict[str, list[str]] = {}
    for path in files:
        kind = next(kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, path))
        if kind in (*FEATURES, "manifest", "deletions", "catalog", "labels") and path not in in_use:
            kind = "staged" if name == "pending" else "older manifest" if kind == "manifest" else "older data"
        kinds.setdefault(kind, []).append(path)
    return kinds


def _in_use(store: Path) -> set[str]:
    """The files that the newest versions of a store's tables refer to, and their manifests."""
    used = set()
    for table in [*store.glob("*.lance"), *store.glob("features/*.lance")]:
        name = table.relative_to(store)
        used.add(str(name / "_versions" / min((table / "_versions").glob("*.manifest")).name))  # Lance counts down
        for fragment in lance.dataset(table).get_fragments():
            deleted = fragment.metadata.deletion_file
            used |= {str(name / "data" / file.path) for file in fragment.data_files()}
            used |= {str(name / deleted.path(fragment.fragment_id))} if deleted else set()
    return used


def a_fault(files: dict[str, list[str]], kind: str, how: str, choose: random.Random) -> Fault | None:
    """One way for a file of a kind; None where there is none that it could change places with."""
    path = choose.choice(files[kind])
    others = [other for other in files[kind] if other != path]
    if how == "swap" and not others:
        return None
    return Fault(path, how, kind, choose.randrange(2**32), choose.choice(others) if how == "swap" else "")


def some_faults(files: dict[str, list[str]], kinds: Sequence[str], number: int, choose: random.Random) -> list[Fault]:
    """So many faults of different files of some kinds, half of them flipped bits."""
    ways = ["flip"] * len(HOW) + [*HOW]
    while True:
        found = [a_fault(files, choose.choice(kinds), choose.choice(ways), choose) for _ in range(number)]
        several = [fault for fault in found if fault is not None]
        paths = [path for fault in several for path in (fault.path, fault.other) if path]
        if len(several) == number and len(paths) == len(set(paths)) and not _hopeless(several):
            return several


def _hopeless(several: Sequence[Fault]) -> bool:
    """Whether a ledger is gone along with what it alone could tell of: rows of images and labels have no checksums."""
    ledgers = {Path(fault.path).parent.as_posix() for fault in several if fault.kind == "ledger"}
    return any(fault.path.split("/")[0] in ledgers and fault.kind != "ledger" for fault in several)
