"""Long runs: hundreds of small runs leave a store as small as one run would, and no history loses or doubles a row.

What is bounded, however many runs there were: versions, fragments and files of a table, its bytes per row, the files
that opening the store opens, and the memory that this takes.
"""

from __future__ import annotations

import csv
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import lance
import numpy as np

from builders import SPEC, Picture, journal, key, label_rows, vector
from conftest import CountingEngine, write_picture
from faults import Faults, invariant
from featurestore import header
from featurestore.dataset import Dataset
from featurestore.journal import Staging
from featurestore.storage import compaction
from featurestore.storage import table as tables_module
from featurestore.storage.table import Table
from featurestore.store import FeatureStore
from pipelines.embedding import worker
from pipelines.embedding.embed import embed
from pipelines.maintenance import gc
from pipelines.options import EmbedOptions

TESTS = Path(__file__).parents[1]
RUNS = 200

# --- what is promised of a table, whatever happened to it (see featurestore/storage/compaction.py)

MAX_VERSIONS = 16
MOST_FRAGMENTS = 46  # three sizes of 15 each and what the last merge made, while there are fewer than 2,048 rows
MOST_FILES = 200
BYTES_A_VERSION = 40_000  # a manifest and a transaction name each fragment; a small data file is 2 kB
BYTES_A_ROW = 400
MOST_OPENED = 1000  # times that a fresh process opens a file to count all and read it for training, but for records
MOST_GROWN = 30  # MiB that such a process may take more after 200 runs than after 20


def bounded(store: Path, rows: int) -> None:
    """Raise AssertionError where a table is larger than this many rows need, or a run has left something."""
    invariant.nothing_pending(store)
    for path in tables(store):
        files = [file for file in path.rglob("*") if file.is_file()]
        versions = [file for file in files if file.suffix == ".manifest"]
        fragments = lance.dataset(path).get_fragments()
        size = sum(file.stat().st_size for file in files)
        assert len(versions) <= MAX_VERSIONS, f"{path.name} has {len(versions)} versions"
        assert len(fragments) <= MOST_FRAGMENTS, f"{path.name} has {len(fragments)} fragments"
        assert len(files) <= MOST_FILES, f"{path.name} has {len(files)} files"
        most = MAX_VERSIONS * BYTES_A_VERSION + BYTES_A_ROW * rows
        assert size <= most, f"{path.name} takes {size:,} bytes for {rows} rows"


def accounted_for(store: Path) -> None:
    """Raise AssertionError where, after ``penult gc --older-than 0s``, a file is there for no known reason.

    There are: the header, the lock, one record a run; of each table three versions, the transactions that made them,
    what data and deletions they name, Lance's hint, the ledger, and of features the canary.
    """
    reasons = {store / "penult.json", store / "lock", *(store / "runs").glob("*/run.json")}
    for path in tables(store):
        versions = [version["version"] for version in lance.dataset(path).versions()]
        assert len(versions) <= 3, f"{path.name} has {len(versions)} versions"
        reasons |= {path / "ledger.json"} | set((store / "features").glob("*.lance/canary.json"))
        reasons |= {path / "_versions" / "latest_version_hint.json"}
        reasons |= {path / "_versions" / f"{2**64 - 1 - version}.manifest" for version in versions}
        for version in versions:
            dataset = lance.dataset(path, version=version)
            for fragment in dataset.get_fragments():
                reasons |= {path / "data" / file.path for file in fragment.data_files()}
                deletions = fragment.metadata.deletion_file
                reasons |= {path / deletions.path(fragment.fragment_id)} if deletions else set()
            reasons |= set((path / "_transactions").glob(f"{version - 1}-*.txn"))
    there = {path for path in store.rglob("*") if path.is_file()}
    assert not (left := there - reasons), f"nobody needs {sorted(map(str, left))}"


def tables(store: Path) -> list[Path]:
    """Folders of the tables of a store."""
    return sorted([*store.glob("*.lance"), *(store / "features").glob("*.lance")])


# --- 200 real runs


def many_runs(folder: Path, runs: int = RUNS) -> None:
    """A manifest that grows by an image per run; now and then files change, break and mend, and labels change."""
    corpus, store = Corpus(folder / "corpus"), folder / "store"
    engine = CountingEngine(batch_size=8)
    memory = []
    with mock.patch.object(worker, "open_engine", lambda *_args, **_options: engine):
        worker.engine_for.cache_clear()
        for run in range(runs):
            corpus.grow(run)
            before = engine.images
            result = embed(str(corpus.manifest), store, EmbedOptions(retry_failed=run % 3 == 0))
            if result.embedded != engine.images - before:
                raise AssertionError(f"the engine was given {engine.images - before} images: {result}")
            if run % 10 == 9 or run == runs - 1:
                bounded(store, 2 * run)
            if run in (runs // 10, runs - 1):
                memory.append(opening(store))
        worker.engine_for.cache_clear()
    assert engine.images == len(corpus.ever), f"{engine.images} images were embedded, {len(corpus.ever)} were there"
    assert memory[1] - memory[0] <= MOST_GROWN, f"opening took {memory[0]} MiB, and now takes {memory[1]}"
    if shutil.which("strace"):
        opened = opened_files(store)
        assert opened <= MOST_OPENED + runs, f"{opened} files are opened"
    gc(store, 0)
    accounted_for(store)
    corpus.check(store)
    embed_nothing(corpus, store)
    corpus.check(store)


def embed_nothing(corpus: Corpus, store: Path) -> None:
    """A rerun finds nothing to do."""
    engine = CountingEngine(batch_size=8)
    with mock.patch.object(worker, "open_engine", lambda *_args, **_options: engine):
        worker.engine_for.cache_clear()
        result = embed(str(corpus.manifest), store)
        worker.engine_for.cache_clear()
    assert (engine.images, result.embedded, result.labels_changed) == (0, 0, 0), result


class Corpus:
    """Images in one folder and a manifest of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, folder / "manifest.csv"
        self.labels: dict[Path, str] = {}
        self.ever: set[str] = set()  # sha256 of the contents that there were
        folder.mkdir(parents=True)

    def grow(self, run: int) -> None:
        """What the world does to a corpus between two runs."""
        self._write(run, run)
        if run % 7 == 6:
            for number in (run - 1, run - 3, run // 2):
                self.labels[self._path(number)] = "xyz"[run % 3]
        if run % 11 == 10:
            self._write(run // 3, 1000 + run)
        if run % 13 == 12:
            self._path(run // 2).write_bytes(b"")
        if run % 13 == 3 and run > 13:
            self._write((run - 4) // 2, 2000 + run)
        with self.manifest.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label"])
            writer.writerows([path.name, label] for path, label in sorted(self.labels.items()))

    def check(self, store: Path) -> None:
        """The store holds these images and these labels."""
        contents = {path.as_uri(): path.read_bytes() or "empty" for path in self.labels}
        labels = {path.as_uri(): label for path, label in self.labels.items()}
        invariant.check(store, contents, labels=labels, former=self.ever)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05}.png"

    def _write(self, number: int, picture: int) -> None:
        path = write_picture(self._path(number), picture)
        self.labels.setdefault(path, "abc"[number % 3])
        self.ever.add(key(path.read_bytes()).hex())


OPEN = """
import re, sys
from pathlib import Path
from featurestore.status import status
from featurestore.store import FeatureStore
store = FeatureStore(sys.argv[1])
status(store), store.dataset()
print(int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)  # not its parent's
"""


def opening(store: Path) -> int:
    """MiB at most of a fresh process that opens the store, counts what it holds and reads it for training."""
    done = subprocess.run([sys.executable, "-c", OPEN, store], cwd=TESTS, capture_output=True, text=True, check=True)
    return int(done.stdout)


def opened_files(store: Path) -> int:
    """How many times such a process opens a file of the store."""
    command = ["strace", "-f", "-qq", "-e", "trace=open,openat", "-o", str(store.with_name("trace"))]
    subprocess.run([*command, sys.executable, "-c", OPEN, store], cwd=TESTS, capture_output=True, check=True)
    return store.with_name("trace").read_text().count(f'"{store}')


# --- any history, against a dictionary

STEPS = ("add", "add", "change", "fail", "copy", "relabel", "relabel", "other", "tend", "clean", "gc", "crash", "pin")
Step = tuple[str, int]


class Crash(BaseException):
    """Stands for a kill: nothing catches it."""


CRASHES: list[tuple[Any, str]] = [
    (Table, "stage"),
    (Table, "commit"),
    (Table, "swap"),
    (Table, "note"),
    (Table, "flush_version"),
    (tables_module.lance.LanceDataset, "commit"),
    (tables_module.lance.LanceDataset, "cleanup_old_versions"),
    (header, "remember"),
    (Staging, "remove"),
    (compaction, "tend"),
]


class Model:
    """A store and, beside it, what it should hold: each step is played on both."""

    def __init__(self, path: Path) -> None:
        self.store = FeatureStore.create(path)
        self.store.add_set(SPEC)
        self.catalog: dict[str, tuple[bytes | None, str]] = {}  # content and run of each uri
        self.labels: dict[str, dict[str, tuple[str, str]]] = {"default": {}, "other": {}}  # label and run of each uri
        self.features: dict[bytes, str] = {}  # which run embedded each content
        self.runs = 0
        self.pinned: tuple[Dataset, np.ndarray] | None = None

    def play(self, steps: Sequence[Step]) -> None:
        """Play steps, and compare after each."""
        for number, (name, size) in enumerate(steps):
            try:
                getattr(self, f"_{name}")(size)
                self.compare()
            except Exception as error:
                raise AssertionError(f"after {list(steps[: number + 1])}: {error!r}") from error

    def compare(self) -> None:
        """Raise AssertionError where a row is lost, twice, or another than it should be."""
        store = FeatureStore(self.store.path)
        rows = store.catalog.read(["uri", "sha256", "run_id"]).to_pylist()
        same("catalog", rows, [(u, c and key(c), run) for u, (c, run) in self.catalog.items()])
        rows = store.labels.read(["label_set", "uri", "label", "run_id"]).to_pylist()
        same("labels", rows, [(s, u, *said) for s, labels in self.labels.items() for u, said in labels.items()])
        table = store.table(SPEC.set_name)
        rows = table.read(["sha256", "view", "run_id"]).to_pylist()
        same("features", rows, [(key(content), 0, run) for content, run in self.features.items()])
        for one in (store.catalog, store.labels, table):
            assert len(one.versions()) <= compaction.MAX_VERSIONS or self.pinned, "versions pile up"
        if self.pinned:
            data, vectors = self.pinned
            assert np.array_equal(data.read().X, vectors), "another pass gives other vectors"

    def finish(self) -> None:
        """Compare by the independent check, tidy up, and account for every file."""
        expected = {uri: "empty" if content is None else content for uri, (content, _) in self.catalog.items()}
        vectors = {key(content).hex(): vector(key(content)).astype(SPEC.dtype) for content in self.features}
        labels = {uri: label for uri, (label, _) in self.labels["default"].items()}
        self.pinned = None
        for _ in range(2):
            invariant.check(self.store.path, expected, vectors, labels=labels, former=list(vectors))
            gc(self.store.path, 0)
        accounted_for(self.store.path)

    def _commit(self, rows: list[Picture], crash: bool = False) -> None:
        run = self._run()
        with self.store.lock():
            staging = journal(self.store, run, [shard for shard in (rows[::2], rows[1::2]) if shard])
            self.store.commit(staging)
        for row in rows:
            self.catalog[row.uri] = (row.content, run)
            if row.content is not None:
                self.features.setdefault(row.content, run)
            if row.label is not None:
                self.labels["default"][row.uri] = (row.label, run)

    def _run(self) -> str:
        self.runs += 1
        return f"r{self.runs:06}"

    def _some(self, size: int) -> list[str]:
        """Some uris of the catalog."""
        uris = sorted(self.catalog)
        return random.Random(f"{self.runs} {size}").sample(uris, min(size, len(uris)))

    def _add(self, size: int) -> None:
        start = len(self.catalog)
        self._commit([Picture(f"{i}", b"%d" % i, "abc"[i % 3]) for i in range(start, start + size + 1)])

    def _change(self, size: int) -> None:
        rows = [Picture(uri, f"{uri} {self.runs}".encode(), "new", replaces=True) for uri in self._some(size)]
        if rows:
            self._commit(rows)

    def _fail(self, size: int) -> None:
        rows = [Picture(uri, None, replaces=True) for uri in self._some(size)]
        self._commit([*rows, Picture(f"bad {self.runs}", None)])

    def _copy(self, size: int) -> None:
        contents = [content for content, _ in map(self.catalog.__getitem__, self._some(size)) if content is not None]
        rows = [Picture(f"copy {self.runs} {n}", content, "abc"[n % 3]) for n, content in enumerate(contents)]
        if rows:
            self._commit(rows)

    def _relabel(self, size: int, label_set: str = "default") -> None:
        uris, run = self._some(2 * size), self._run()
        if uris:
            rows = label_rows(run, [Picture(uri, None, f"of {run}") for uri in uris], label_set)
            with self.store.lock():
                self.store.commit_labels(run, [rows])
            self.labels[label_set].update(dict.fromkeys(uris, (f"of {run}", run)))

    def _other(self, size: int) -> None:
        self._relabel(size, "other")

    def _tend(self, _: int) -> None:
        with self.store.lock():
            for table in self._tables():
                compaction.tend(table)

    def _clean(self, _: int) -> None:
        with self.store.lock():
            for table in self._tables():
                table.cleanup(staged_too=True)

    def _gc(self, _: int) -> None:
        gc(self.store.path, 0)

    def _crash(self, size: int) -> None:
        """A run dies somewhere in its commit, or in what comes after it; the next one finishes it."""
        owner, name = CRASHES[size % len(CRASHES)]
        real, left = getattr(owner, name), [size // len(CRASHES)]

        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == -1:
                raise Crash
            done = real(*arguments, **options)
            if left[0] == -2:
                raise Crash
            return done

        rows = [Picture(uri, f"{uri} {self.runs}".encode(), "new", replaces=True) for uri in self._some(3)]
        rows += [Picture(f"crashed {self.runs} {n}", b"%d %d" % (n, self.runs), "c") for n in range(2)]
        commit = self.store.commit

        def dies(staging: Staging) -> None:
            with ExitStack() as patches:
                patches.enter_context(mock.patch.object(owner, name, call))
                with suppress(Crash):
                    commit(staging)

        with mock.patch.object(self.store, "commit", dies):
            self._commit(rows)
        self.store = FeatureStore(self.store.path)
        with self.store.lock():
            self.store.recover()
            self.store.remember()
        self._tend(0)

    def _pin(self, _: int) -> None:
        """Hold a version and read it again and again, or let it go."""
        if self.pinned:
            self.pinned = None
            self._tend(0)
        elif any(content is not None and uri in self.labels["default"] for uri, (content, _) in self.catalog.items()):
            data = self.store.dataset(memory_limit=1)
            self.pinned = data, data.read().X

    def _tables(self) -> list[Table]:
        return [self.store.catalog, self.store.labels, self.store.table(SPEC.set_name)]


def same(what: str, rows: list[dict[str, Any]], expected: list[tuple[Any, ...]]) -> None:
    """Raise AssertionError unless rows are those expected, each once."""
    found, wanted = Counter(tuple(row.values()) for row in rows), Counter(expected)
    assert found == wanted, f"{what}: lost {list(wanted - found)[:3]}, too many {list(found - wanted)[:3]}"


@contextmanager
def few_rows_a_tier() -> Iterator[None]:
    """Merge and clean up much more often."""
    with ExitStack() as patches:
        for name, value in {"TIER": 3, "LARGE": 20, "MAX_VERSIONS": 5}.items():
            patches.enter_context(mock.patch.object(compaction, name, value))
        yield


def history(folder: Path, seed: int, steps: int, small: bool) -> None:
    """A random history, as it is or with much more merging."""
    rng = random.Random(seed)
    model = Model(folder / "store")
    with few_rows_a_tier() if small else ExitStack():
        model.play([(rng.choice(STEPS), rng.randrange(30)) for _ in range(steps)])
        model.finish()


def faults(seed: int, count: int) -> Faults:
    """Two hundred runs, and random histories."""
    yield f"{RUNS} runs", many_runs
    for number in range(count):
        trial: Callable[[Path], None] = partial(history, seed=1000 * seed + number, steps=40, small=number % 4 > 0)
        yield f"history {number}", trial
