"""Power loss: the disk as a cut may leave it, worked out from the system calls of the commands that were cut.

A few commands are recorded once. A trial is a cut after one of their calls, and a choice of what the disk has made of
all that was not flushed by then.
"""

from __future__ import annotations

import functools
import json
import pickle
import random
import re
import sys
import unittest
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from conftest import write_picture
from faults import Faults, Trial, child, invariant, own_folder
from faults.jobs import JOBS, PATIENCE, SHARD, TESTS, Job, embed_here
from faults.replay import BYTES, Disk, Image, damage, read, write
from faults.trace import Change, traced
from faults.warm import Forked
from featurestore.errors import PenultError, StoreCorrupt, StoreNotFound
from featurestore.status import status
from featurestore.store import FeatureStore
from heads import artifact

CHILD = [sys.executable, "-m", "faults.child"]  # in the folder TESTS
MARK = "ended"  # a folder that is made and removed beside the store after each command
NAMES = ("lost", "there", "some", "below")  # what becomes of names that were not flushed; below one folder: lost
RECORDED = ("story", "embed-tended", "gc")
STORE = "store"
Rows = dict[Any, Any]


# --- what was cut


@dataclass(frozen=True)
class State:
    """What a store holds, read from its files without penult."""

    catalog: Rows  # sha256 of what could be embedded, by uri
    labels: Rows  # labels, by label set, source and uri
    runs: frozenset[str]


@dataclass(frozen=True)
class Recording:
    """Some commands on one store: what they did to the disk, and what the store held after each.

    Attributes:
        job: the last command that embeds or tidies up, and what the store is to hold once it was run again.
        start: what the disk held before.
        changes: of all commands, one after another.
        ends: where in ``changes`` each command has ended.
        states: of the store before the first command and after each.
        vectors: by sha256, of all contents that were ever there.
    """

    job: Job
    start: Image
    changes: list[Change]
    ends: list[int]
    states: list[State]
    vectors: dict[str, np.ndarray]

    def disk(self, at: int) -> Disk:
        """The disk after so many changes."""
        return Disk(self.changes[:at], self.start)

    def done(self, at: int) -> int:
        """How many commands had ended after so many changes."""
        return sum(end <= at for end in self.ends)


Step = tuple[Callable[[], object], list[str]]  # what happens outside the store, then a command


@functools.cache
def recorded(name: str) -> Path:
    """Make one of the recordings, in a folder that lasts as long as this process; return its file.

    Raises:
        SkipTest: strace is missing or may not trace.
    """
    folder = own_folder()
    (folder / "place").mkdir()
    if name == "story":
        told = story(folder)
    else:
        job = JOBS[name](folder / "place")
        told = record(job, [(lambda: None, job.command)])
    path = folder / "recording"
    path.write_bytes(pickle.dumps(told))
    return path


def story(folder: Path) -> Recording:
    """A new store: embed, relabel all, embed the corpus that has changed meanwhile, train, label."""
    corpus, store = folder / "corpus", folder / "place" / STORE
    pictures = [write_picture(corpus / "abc"[n % 3] / f"{n:02}.png", n) for n in range(30)]

    def change() -> None:
        """Contents change places, so that none is left without an image, and new ones come."""
        for number in range(5):
            write_picture(pictures[number], (number + 1) % 5)
        for number in range(30, 33):
            write_picture(corpus / "new" / f"{number}.png", number)

    relabelled, other = folder / "labels.csv", folder / "other.csv"
    relabelled.write_text("path,label\n" + "".join(f"{path},z{path.parent.name}\n" for path in pictures))
    other.write_text("path,label\n" + "".join(f"{path},{n % 2}\n" for n, path in enumerate(pictures)))
    into = ["--store", str(store)]
    embed = ["embed", str(corpus), *into, "--shard-images", str(SHARD)]
    steps: list[Step] = [
        (lambda: None, embed),
        (lambda: None, ["label", str(relabelled), *into]),
        (change, embed),
        (lambda: None, ["train", "--head", "ncm", *into]),
        (lambda: None, ["label", str(other), "--label-set", "other", *into]),
    ]
    told = record(Job("story", store, embed, {}, {}), steps)
    contents, labels = invariant.folder_contents(corpus)
    return replace(told, job=replace(told.job, contents=contents, labels=labels))


def record(job: Job, steps: Sequence[Step]) -> Recording:
    """Run commands on a store, each to its end in a process of its own, under strace."""
    place = job.store.parent
    start, states = read(place), [state_of(job.store)]
    vectors: dict[str, np.ndarray] = {}
    changes: list[Change] = []
    ends = []

    def commands() -> Iterator[str]:
        for prepare, command in steps:
            prepare()
            yield json.dumps(["--fake", *command])
            states.append(state_of(job.store))
            vectors.update(invariant.stored_vectors(job.store))

    for change in traced([*CHILD, "--each", str(place / MARK)], commands(), place, TESTS):
        if change.path != MARK:
            changes.append(change)
        elif change.kind == "mkdir":
            ends.append(len(changes))
    assert len(ends) == len(steps) and Disk(changes, start).now() == read(place), (
        "the trace does not tell all that happened"
    )
    return Recording(job, start, changes, ends, states, vectors)


@functools.cache
def load(recording: Path) -> Recording:
    """A recording, read once per process."""
    found = pickle.loads(recording.read_bytes())
    assert isinstance(found, Recording)
    return found


def state_of(store: Path) -> State:
    """What a store holds; nothing where there is none."""
    if not store.exists():
        return State({}, {}, frozenset())
    catalog, labels = (invariant.rows_of(store / f"{name}.lance") for name in ("catalog", "labels"))
    return State(
        {row["uri"]: row["sha256"].hex() for row in catalog if row["status"] == "ok"},
        {(row["label_set"], row["source"], row["uri"]): row["label"] for row in labels},
        frozenset(path.parent.name for path in store.glob("runs/*/run.json")),
    )


# --- the trials


def cut(recording: Path, at: int, names: str, data: str, seed: int, folder: Path) -> None:
    """Cut the power after ``at`` changes; NAMES and BYTES say what the disk made of what was not flushed."""
    told, choose = load(recording), random.Random(seed)
    disk = told.disk(at)
    write(disk.after_cut(_happened(names, disk, choose), damage(data, choose)), folder)
    survives(told, at, folder / STORE)


def lost_below(recording: Path, at: int, lost: str, folder: Path) -> None:
    """Cut the power after ``at`` changes; what was not flushed is there, but for names below one folder."""
    told = load(recording)
    write(told.disk(at).after_cut(lambda paths: not _below(paths, lost), bytes), folder)
    survives(told, at, folder / STORE)


def settled(recording: Path, at: int, _folder: Path) -> None:
    """What is acknowledged after ``at`` changes is safe: nothing waits to be flushed but what may come or go."""
    disk = load(recording).disk(at)
    now = disk.now()
    named = b"".join(data or b"" for path, data in now.items() if path.endswith((".json", ".manifest")))
    left = [
        path for path in disk.unflushed() if not (_may_be_lost(path, named) if path in now else _may_come_back(path))
    ]
    assert not left, f"acknowledged, and not flushed: {left}"


def spoiled(recording: Path, at: int, path: str, how: str, folder: Path) -> None:
    """Nothing is wrong after ``at`` changes but one file: of BYTES, or missing."""
    told = load(recording)
    write(told.disk(at).now(), folder)
    if how == "missing":
        (folder / path).unlink()
    else:
        (folder / path).write_bytes(damage(how, random.Random())((folder / path).read_bytes()))
    survives(told, at, folder / STORE)


def survives(told: Recording, at: int, store: Path) -> None:
    """Raise AssertionError unless what was acknowledged after ``at`` changes is served whole, or refused and then
    repaired, and a rerun leaves the store as if nothing had happened."""
    try:
        check_usable(told, at, store)
    except StoreCorrupt as error:
        check_refusal(error, store)
        code, said = penult(["doctor", "--store", str(store)])
        assert code == 0 and "Traceback" not in said, f"after {error!r} doctor said: {said}"
        check_usable(told, at, store)


def check_usable(told: Recording, at: int, store: Path) -> None:
    """Raise AssertionError where a store serves what it should not, or does not end well after a rerun."""
    try:
        check_served(told, at, store)
        with (opened := FeatureStore(store)).lock():
            opened.recover()
        check_served(told, at, store, partly=True)
    except StoreNotFound as error:
        assert not told.states[told.done(at)].catalog, f"a store that held what was acknowledged is gone: {error}"
    job = replace(told.job, store=store)
    if job.command[0] == "embed":
        embed_here(job)
    else:
        code, said = penult([str(store) if word == str(told.job.store) else word for word in job.command])
        assert code == 0, f"the rerun ended with {code}: {said}"
    labels = dict(job.labels)
    if job.command[0] == "embed":  # what people had said by then, which ``check_served`` has looked at, lies over it
        labels |= invariant.people(store, "default")
    invariant.check(store, job.contents, told.vectors, labels=labels, former=job.former)


def check_served(told: Recording, at: int, store: Path, partly: bool = False) -> None:
    """Raise AssertionError where a store serves anything but what is acknowledged after ``at`` changes, or what the
    command under way was to leave; ``partly``: some of that without the rest, as it is after a recovery."""
    opened = FeatureStore(store)
    status(opened)
    done = told.done(at)
    before, after = told.states[done], told.states[done if at in told.ends else done + 1]
    catalog = opened.catalog.read(["uri", "sha256"], "status = 'ok'").to_pylist()
    served = {row["uri"]: row["sha256"].hex() for row in catalog}
    rows = opened.labels.read(["label_set", "source", "uri", "label"]).to_pylist()
    labels = {(row["label_set"], row["source"], row["uri"]): row["label"] for row in rows}
    assert len(served) == len(catalog) and len(labels) == len(rows), "a row is there twice"
    check_between("catalog", served, before.catalog, after.catalog, partly)
    check_between("labels", labels, before.labels, after.labels, partly)
    if served:
        hexes = sorted(set(served.values()))
        X, found = opened.vectors(opened.resolve(), np.array([bytes.fromhex(key) for key in hexes], "S32"))
        lost = [key for key, there in zip(hexes, found, strict=True) if not there]
        assert not lost, f"{len(lost)} contents of the catalog have no features"
        wrong = [key for key, row in zip(hexes, X, strict=True) if (row != told.vectors[key]).any()]
        assert not wrong, f"{len(wrong)} contents have other features than before"
    lost_runs = before.runs - {run.run_id for run in opened.runs()}
    assert not lost_runs, f"no record of {lost_runs}"
    for run in before.runs:
        if "-train-" in run:
            artifact.load(opened.run_folder(run))


def check_between(name: str, rows: Rows, before: Rows, after: Rows, partly: bool) -> None:
    """Raise AssertionError unless rows are those before or those after; ``partly``: each row by itself."""
    if partly:
        lost = before.keys() - rows.keys()
        wrong = [key for key, value in rows.items() if value not in (before.get(key), after.get(key))]
        assert not lost and not wrong, f"{name}: lost {sorted(lost)[:3]}, wrong {wrong[:3]}"
    else:
        assert rows in (before, after), f"{name}: {len(rows)} rows, neither those before nor those after"


def check_refusal(error: PenultError, store: Path) -> None:
    """Raise AssertionError unless an error names what is damaged and says what to do."""
    said = str(error)
    assert f"{store}/" in said and "penult doctor" in said, f"names no file, or not what to do: {said}"
    assert "panic" not in said and "/rust/" not in said and "\n" not in said, f"no sentence for people: {said}"


def penult(command: Sequence[str]) -> tuple[int | None, str]:
    """Run a command to its end; its exit code and what it said."""
    with Forked(child.run, ["--fake", *command]) as process:
        _, said = process.communicate(PATIENCE)
    return process.returncode, said


# --- the faults


def faults(seed: int, count: int) -> Faults:
    """Cuts around each commit, files spoiled one by one, and ``count`` cuts anywhere."""
    try:
        recordings = [recorded(name) for name in RECORDED]
    except unittest.SkipTest as reason:
        yield "cut", functools.partial(_skip, str(reason))
        return
    for recording in recordings:
        yield from around(recording, seed)
    yield from spoils(recordings[0])
    choose = random.Random(seed)
    for number in range(count):
        recording = choose.choice(recordings)
        at, names, data = choose.randrange(len(load(recording).changes)), choose.choice(NAMES), choose.choice(BYTES)
        yield _cut(recording, at, names, data, seed + number)


def around(recording: Path, seed: int) -> Faults:
    """Cuts where something is committed or acknowledged."""
    told = load(recording)
    for at in around_commits(told.changes):
        for names, data in (("there", "zeroed"), ("some", "mixed")):
            yield _cut(recording, at, names, data, seed)
    for at in acknowledgements(told):
        yield f"all is safe {_place(told, at)}", functools.partial(settled, recording, at)
    for end in told.ends:
        for lost in _folders(told.disk(end).unflushed()):
            yield f"cut {_place(told, end)}, lost below {lost}", functools.partial(lost_below, recording, end, lost)


def around_commits(changes: Sequence[Change]) -> list[int]:
    """Cuts from just before a file that others rely upon gets its name to its being safe."""
    found: set[int] = set()
    for number, change in enumerate(changes):
        if change.kind in ("link", "rename") and Path(change.to).suffix in (".manifest", ".json", ".lance", ".arrow"):
            flush = Change("fsync", str(Path(change.to).parent))
            safe = changes.index(flush, number) if flush in changes[number:] else number
            found |= {n for n in range(number, safe + 2) if changes[n - 1].kind not in ("write", "create")}
    return sorted(found)


def acknowledgements(told: Recording) -> list[int]:
    """Where a shard is finished, and where a command has ended."""
    finished = re.compile(r".*/shards/\d+\.json")
    found = set(told.ends)
    for number, change in enumerate(told.changes):
        if change.kind == "link" and finished.fullmatch(change.to):
            found.add(told.changes.index(Change("fsync", str(Path(change.to).parent)), number) + 1)
    return sorted(found)


def spoils(recording: Path) -> Faults:
    """The newest manifest of each table and the header, when all is done; each file of a journal before its commit."""
    told = load(recording)
    end = len(told.changes)
    whole = told.disk(end).now()
    tables = [path for path, data in whole.items() if path.endswith(".lance") and data is None]
    newest = [min(p for p in whole if p.startswith(f"{t}/_versions/") and p.endswith(".manifest")) for t in tables]
    second = re.compile(f".*/features/.*/{2**64 - 3}.manifest.*")
    commit = next(number for number, change in enumerate(told.changes) if second.fullmatch(change.path))
    journal = [path for path, data in told.disk(commit).now().items() if "/staging/" in path and data]
    for at, path in [(end, path) for path in (f"{STORE}/penult.json", *newest)] + [(commit, path) for path in journal]:
        for how in ("emptied", "cut", "zeroed", "missing"):
            if (path, how) != (f"{STORE}/penult.json", "missing"):  # then it is no store
                yield f"{path} {how}", functools.partial(spoiled, recording, at, path, how)


def _cut(recording: Path, at: int, names: str, data: str, seed: int) -> tuple[str, Trial]:
    name = f"cut {_place(load(recording), at)}, names {names}, bytes {data}"
    return name, functools.partial(cut, recording, at, names, data, seed)


def _place(told: Recording, at: int) -> str:
    if at in told.ends:
        return f"at the end of {told.job.name}, command {told.ends.index(at)}"
    last = told.changes[at - 1] if at else None
    return f"in {told.job.name} {at}, after " + (f"{last.kind} of {last.to or last.path}" if last else "nothing")


def _happened(names: str, disk: Disk, choose: random.Random) -> Callable[[list[str]], bool]:
    if names == "below":
        lost = choose.choice(_folders(disk.unflushed()) or [STORE])
        return lambda paths: not _below(paths, lost)
    return {"lost": lambda _: False, "there": lambda _: True, "some": lambda _: choose.random() < 0.5}[names]


def _below(paths: list[str], folder: str) -> bool:
    return any(path.startswith(f"{folder}/") for path in paths)


def _folders(paths: list[str]) -> list[str]:
    """All folders that hold one of the paths."""
    return sorted({str(parent) for path in paths for parent in Path(path).parents} - {"."})


def _may_be_lost(path: str, named: bytes) -> bool:
    """Whether nobody relies on a file: it says who holds the lock, how far a shard is, or another shard writes it.

    ``named``: what names the data files on which somebody relies.
    """
    unnamed = Path(path).parent.name == "data" and Path(path).name.encode() not in named  # Lance renames it at its end
    return path == f"{STORE}/lock" or path.endswith((".progress", ".tmp")) or unnamed


def _may_come_back(path: str) -> bool:
    """Whether a file does no harm after it was removed: all but the note by which a journal counts."""
    return not (path.startswith(f"{STORE}/staging/") and path.endswith("/run.json"))


def _skip(reason: str, _folder: Path) -> NoReturn:
    raise unittest.SkipTest(reason)
