"""Races: writers, readers, compaction and cleanup at once; files and folders that change while they are embedded.

A store of generations makes a mix visible: each run gives every image another content and another label, so that a
reader who sees rows of two runs sees a label that no run has given to that content, or too few images.

Each party of a race is in a process of its own; it ends when its standard input does.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np

from builders import SPEC, Picture, journal, key, label_rows, vector
from conftest import CountingEngine, write_picture
from faults import Faults, invariant, needs
from faults.child import strike_at_call
from faults.jobs import PATIENCE, TESTS
from faults.longrun import accounted_for, few_rows_a_tier
from faults.warm import Forked, counting, shim
from featurestore import header
from featurestore.errors import StoreLocked
from featurestore.status import status
from featurestore.storage.table import KEPT_VERSIONS
from featurestore.store import FeatureStore
from pipelines.embedding import worker
from pipelines.embedding.embed import EmbedResult, embed
from pipelines.maintenance import gc
from pipelines.options import EmbedOptions, TrainOptions
from pipelines.predict import Prediction, predict
from pipelines.sources import corpus as sources
from pipelines.sources import uris as files
from pipelines.training import train_head

PICTURES = 12
LOCKED = 75

# --- the parties, each a process


@contextmanager
def party(role: Callable[..., None], *arguments: object) -> Iterator[Forked]:
    """Start a party and wait until it is ready; ended if the block ends before it."""
    with Forked(role, *arguments) as process:
        try:
            line = process.stdout.readline()
            assert line == "ready\n", f"{role.__name__}: {line}{process.stderr.read() if not line else ''}"
            yield process
        finally:
            process.kill()


def ended(process: Forked) -> list[str]:
    """Tell a party to end; what it has said."""
    told, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, f"{process.args} ended with {process.returncode}: {said[-2000:]}"
    return told.splitlines()


def asked_to_end() -> bool:
    """Whether standard input has ended."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


def read_generations(store: Path, what: str) -> None:
    """Read again and again; fail where anything but one whole generation is seen. Says how many passes it made."""
    look: Callable[[Path], object]
    look = {"dataset": see_dataset, "status": see_status, "predict": see_prediction}[what]
    first = look(store)
    print("ready", flush=True)
    passes = 0
    while not asked_to_end():
        assert look(store) == first
        passes += 1
    print(passes)


def see_dataset(store: Path) -> None:
    data = FeatureStore(store).dataset()
    assert len(data) == PICTURES, f"{PICTURES - len(data)} labelled images are gone: {sorted(data.y)}"
    generation = {label.split()[-1] for label in data.y.tolist()}
    assert len(generation) == 1, f"labels of runs {sorted(generation)} together"
    known = {key(content(i, int(*generation))).hex(): label_of(i, int(*generation)) for i in range(PICTURES)}
    wrong = {id: label for id, label in zip(data.ids.tolist(), data.y.tolist(), strict=True) if known.get(id) != label}
    assert not wrong, f"labels that these contents never had: {wrong}"
    right = [vector(bytes.fromhex(id)).astype(SPEC.dtype).astype(np.float32) for id in data.ids.tolist()]
    assert np.array_equal(data.X, right), "vectors of other images"


def see_status(store: Path) -> None:
    told = status(FeatureStore(store))
    assert told["catalog"] == {"ok": PICTURES, "failed": 0, "contents": PICTURES, "removed": 0}, told["catalog"]
    assert told["labels"] == {"default": PICTURES}, told["labels"]
    assert told["differing_labels"]["default"]["contents"] == 0, told["differing_labels"]
    assert told["sets"][0]["coverage"] == 1.0 and told["bytes"] > 0


def see_prediction(store: Path) -> list[Prediction]:
    """Of images of the first generation, whose features are there for good: always the same."""
    found = predict(sorted(map(str, store.with_name("pictures").iterdir())), store)
    assert not any(one.error for one in found), found
    return found


def read_pinned(store: Path) -> None:
    """Hold one version; a pass over it for each line of standard input, whose digest is said."""
    data = FeatureStore(store).dataset(memory_limit=1)
    assert data.stored is not None
    print("ready", flush=True)
    for _ in sys.stdin:
        digest = hashlib.sha256()
        for piece in data.stored.pieces():
            digest.update(piece.tobytes())
        print(digest.hexdigest(), len(data), flush=True)


def embed_often(store: Path, corpus: Path) -> None:
    """Add an image and embed, again and again; says how often it was done, and how often another was at it."""
    worker.open_engine = lambda *_args, **_options: CountingEngine(batch_size=8)  # type: ignore[assignment]
    print("ready", flush=True)
    done = locked = 0
    while not asked_to_end() or not done:
        write_picture(
            corpus / "abc"[done % 3] / f"{corpus.name}{done}.png", int.from_bytes(corpus.name.encode()) + done
        )
        write_picture(corpus / "a" / f"same{done}.png", done)
        try:
            embed(str(corpus), store)
            done += 1
        except StoreLocked:
            locked += 1
            time.sleep(0.01)
    while True:  # until all of it is in
        try:
            embed(str(corpus), store)
            break
        except StoreLocked:
            time.sleep(0.01)
    print(json.dumps({"done": done, "locked": locked}))


def gc_often(store: Path) -> None:
    """Clean up again and again."""
    print("ready", flush=True)
    done = locked = 0
    while not asked_to_end():
        try:
            gc(store, 0)
            done += 1
        except StoreLocked:
            locked += 1
            time.sleep(0.01)
    print(json.dumps({"done": done, "locked": locked}))


# --- a store of generations


def content(number: int, generation: int) -> bytes:
    return b"%d of %d" % (number, generation)


def label_of(number: int, generation: int) -> str:
    return f"{'ab'[number % 2]} of {generation}"


def generation(store: FeatureStore, number: int) -> None:
    """A run that changes every image and every label, in two shards."""
    rows = [
        Picture(f"file:///{i}", content(i, number), label_of(i, number), replaces=number > 0) for i in range(PICTURES)
    ]
    with store.lock():
        store.commit(journal(store, f"r{number:05}", [rows[::2], rows[1::2]]))


def labelled_again(store: FeatureStore, number: int) -> None:
    """A run that gives every image the label it has."""
    run = f"r{number:05}-label"
    rows = [Picture(f"file:///{i}", None, label_of(i, number)) for i in range(PICTURES)]
    with store.lock():
        store.commit_labels(run, [label_rows(run, rows)])


def first_generation(folder: Path) -> FeatureStore:
    store = FeatureStore.create(folder / "store")
    generation(store, 0)
    return store


def expect_generation(store: FeatureStore, last: int) -> None:
    """The store holds the last generation, and the features of all before."""
    ever = [content(i, number) for number in range(last + 1) for i in range(PICTURES)]
    invariant.check(
        store.path,
        {f"file:///{i}": content(i, last) for i in range(PICTURES)},
        {key(one).hex(): vector(key(one)).astype(SPEC.dtype) for one in ever},
        labels={f"file:///{i}": label_of(i, last) for i in range(PICTURES)},
        former=[key(one).hex() for one in ever],
    )


# --- readers beside a writer


def many_readers(folder: Path, whats: Sequence[str], runs: int, small: bool = True) -> None:
    """Readers of all kinds, while runs commit, merge and clean up: each sees whole generations only."""
    store = first_generation(folder)
    if "predict" in whats:
        train_head(store.path, TrainOptions("ncm"))
        (folder / "pictures").mkdir()
        for i in range(PICTURES):
            (folder / "pictures" / f"{i:02}").write_bytes(content(i, 0))
    with ExitStack() as stack:
        readers = [stack.enter_context(party(read_generations, store.path, what)) for what in whats]
        with few_rows_a_tier() if small else ExitStack():
            for number in range(1, runs + 1):
                generation(store, number)
                if number % 3 == 0:
                    labelled_again(store, number)
                if number % 5 == 0:
                    gc(store.path, 0)
        passes = [int(ended(reader)[-1]) for reader in readers]
    assert all(passes), f"a reader made no pass: {passes}"
    expect_generation(store, runs)


def stopped_reader(folder: Path, seed: int, stops: int = 5) -> None:
    """A reader stopped anywhere while many runs commit, merge and clean up goes on as if nothing had been."""
    store, rng = first_generation(folder), random.Random(seed)
    number = 0
    with party(read_generations, store.path, "dataset") as reader, few_rows_a_tier():
        for _ in range(stops):
            time.sleep(rng.uniform(0, 0.1))
            reader.send_signal(signal.SIGSTOP)
            for _ in range(rng.randrange(1, 8)):
                number += 1
                generation(store, number)
            gc(store.path, 0)
            reader.send_signal(signal.SIGCONT)
        ended(reader)
    expect_generation(store, number)


def pinned_reader(folder: Path, killed: bool, runs: int = 12) -> None:
    """A version that another process reads stays byte for byte; once that process is gone, so is the version."""
    store = first_generation(folder)
    with party(read_pinned, store.path) as reader, few_rows_a_tier():
        first = ask(reader)
        pinned = store.table(SPEC.set_name).version
        for number in range(1, runs + 1):
            generation(store, number)
            if number % 4 == 0:
                gc(store.path, 0)
                assert pinned in store.table(SPEC.set_name).versions(), "the version is gone that is being read"
                assert ask(reader) == first, "another pass gives other bytes"
        assert max(len(table_versions(store.path, name)) for name in ("catalog", "labels")) <= KEPT_VERSIONS
        if killed:
            reader.kill()
            reader.wait()
        else:
            ended(reader)
    gc(store.path, 0)
    assert pinned not in store.table(SPEC.set_name).versions(), "what nobody reads any more is still there"
    accounted_for(store.path)
    expect_generation(store, runs)


def ask(reader: Forked) -> str:
    reader.stdin.write("pass\n")
    reader.stdin.flush()
    line = reader.stdout.readline()
    assert line, f"the reader has died: {reader.stderr.read()}"
    return line


def table_versions(store: Path, name: str) -> list[Path]:
    return list((store / f"{name}.lance" / "_versions").glob("*.manifest"))


def half_a_commit(folder: Path, after: str) -> None:
    """A run that has died between two tables: readers go on with what was there, until the next run completes it."""
    store = first_generation(folder)
    real = store.table(SPEC.set_name).__class__.commit

    class Dies(BaseException):
        pass

    def commit(table: object, *arguments: object, **options: object) -> bool:
        done = real(table, *arguments, **options)  # type: ignore[arg-type]
        if table.path.name.startswith(after):  # type: ignore[attr-defined]
            raise Dies
        return done

    try:
        with mock.patch.object(store.table(SPEC.set_name).__class__, "commit", commit):
            generation(store, 1)
    except Dies:
        pass
    for look in (see_dataset, see_status):
        look(store.path)
    again = FeatureStore(store.path)
    with again.lock():
        again.recover()
    expect_generation(again, 1)


# --- writers and gc


def writers(folder: Path, names: Sequence[str], seconds: float, cleaners: int) -> None:
    """Several runs into one new store, and gc beside them: the lock sends some away, and in the end all is there."""
    store = folder / "store"
    with ExitStack() as stack:
        parties = [stack.enter_context(party(embed_often, store, folder / name)) for name in names]
        if cleaners:
            wait_for(store / "penult.json")
            parties += [stack.enter_context(party(gc_often, store)) for _ in range(cleaners)]
        time.sleep(seconds)
        counts = [json.loads(ended(one)[-1]) for one in parties]
    assert all(count["done"] for count in counts), f"one never had its turn: {counts}"
    expected: dict[str, bytes | str] = {}
    labels: dict[str, str] = {}
    for name in names:
        contents, said = invariant.folder_contents(folder / name)
        expected |= contents
        labels |= said
    invariant.check(store, expected, labels=labels)
    gc(store, 0)
    accounted_for(store)
    invariant.check(store, expected, labels=labels)


def wait_for(path: Path) -> None:
    began = time.monotonic()
    while not path.exists():
        assert time.monotonic() < began + PATIENCE, f"{path} does not come"
        time.sleep(0.01)


def made_twice(folder: Path) -> None:
    """A run is about to write the header of a new store when another makes that store, and commits."""
    real, turns = header.create, iter([True])

    def create(path: Path) -> None:
        if next(turns, False):
            with suppress(StoreLocked):
                first_generation(folder)
        real(path)

    with mock.patch.object(header, "create", create):
        store = FeatureStore.create(folder / "store")
    known = header.read(store.path)["tables"].get("catalog.lance", {"rows": 0})
    assert known["rows"] == store.catalog.count(), "the header has forgotten a commit"
    if not known["rows"]:
        generation(store, 0)
    expect_generation(store, 0)


def made_by_many(folder: Path) -> None:
    """Six threads make one store at once: it is made once, and nobody fails but for the lock."""
    barrier = threading.Barrier(6)

    def make(_: int) -> bool:
        barrier.wait()
        try:
            FeatureStore.create(folder / "store")
        except StoreLocked:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert any(pool.map(make, range(6)))
    store = FeatureStore.create(folder / "store")
    generation(store, 0)
    expect_generation(store, 0)


def gc_twice(folder: Path) -> None:
    """Two gc at once: one does it, and the other does it after that, is sent away, or is said to be in the way."""
    store = worn(folder / "store")
    command = [sys.executable, "-m", "pipelines", "gc", "--store", str(store), "--older-than", "0s"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=PATIENCE)[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 0], [0, LOCKED]), said
    assert "Traceback" not in "".join(said), said
    if "is being read" in "".join(said):  # by the other one, which only opens the store
        gc(store, 0)
    accounted_for(store)
    expect_generation(FeatureStore(store), WORN - 1)


WORN = 6


def worn(path: Path) -> Path:
    """A store of many runs that has not been tidied up, with what a dead run has left."""
    store = FeatureStore.create(path)
    with mock.patch("featurestore.storage.compaction.tend"):
        for number in range(WORN):
            generation(store, number)
            labelled_again(store, number)
    with store.lock():
        journal(store, "dead", [[Picture("file:///dead", b"dead")]]).remove()
    for name in (".penult.json.1.tmp", "runs/20260101T000000000000Z-train-000000/head.npz"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"left")
    return path


def gc_killed(folder: Path, nth: int, half: bool) -> None:
    """Kill gc before, or in the midst of, one of its changes to the disk; another gc finishes."""
    needs("cc")
    store = worn(folder / "store")
    with Forked(tidy, store, nth, half) as process:
        _, said = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), said
    see_dataset_of(FeatureStore(store), WORN - 1)
    with few_rows_a_tier():
        gc(store, 0)
        gc(store, 0)
    accounted_for(store)
    expect_generation(FeatureStore(store), WORN - 1)


def tidy(store: Path, nth: int | None = None, half: bool = False) -> None:
    """Collect garbage, in a process that is killed at a call if one is given."""
    with few_rows_a_tier():
        if nth:
            strike_at_call(nth, half)
        gc(store, 0)


def gc_calls() -> int:
    """How many calls that change the disk such a gc makes; 1 where they cannot be counted."""
    if shim() is None:
        return 1
    with TemporaryDirectory() as folder:
        store, count = worn(Path(folder) / "store"), Path(folder) / "count"
        script = f"from pathlib import Path; from faults.races import tidy; tidy(Path({str(store)!r}))"
        subprocess.run([sys.executable, "-c", script], cwd=TESTS, env=os.environ | counting(count), check=True)
        return int(count.read_text())


def see_dataset_of(store: FeatureStore, number: int) -> None:
    see_dataset(store.path)
    assert {label.split()[-1] for label in store.dataset().y.tolist()} == {str(number)}


# --- files that change between plan and decode


def changed_file(folder: Path, how: str) -> None:
    """One file of thirty changes after it was planned; the others come through, and the next run puts it right."""
    corpus, store = _corpus(folder), folder / "store"
    path = corpus / "b" / "13.png"
    with before_reading(lambda: CHANGES[how](path)):
        result, _ = embed_here(corpus, store)
    assert result.seen == 30 and result.embedded + result.deduplicated + result.failed == 30, result
    seen, labels = invariant.folder_contents(corpus)
    uri, others = sources.uri_of(path), dict(seen)
    others.pop(uri, None)
    rows = {row["uri"]: row for row in invariant.rows_of(store / "catalog.lance")}
    assert {u: row["sha256"] for u, row in rows.items() if u != uri} == {u: key(c) for u, c in others.items()}, "others"
    expect = {"ok": seen.get(uri)} if rows[uri]["status"] == "ok" else {}
    if expect:
        assert rows[uri]["sha256"] == key(seen[uri]), (
            "features of a content that this file did not have when it was read"
        )
    if BACK.get(how):
        BACK[how](path)
    result, images = embed_here(corpus, store)
    contents, labels = invariant.folder_contents(corpus)
    former = _embedded(store) & {key(one).hex() for one in seen.values()}
    expected: dict[str, bytes | str] = {u: WORDS.get(how, c) if u == uri else c for u, c in contents.items()}
    expected.setdefault(uri, WORDS.get(how, ""))
    if os.path.lexists(path) and not path.is_dir():  # else it is no longer listed, and removed
        labels.setdefault(uri, "b")
    invariant.check(store, expected, labels=labels, former=former)
    result, images = embed_here(corpus, store)
    assert (result.embedded, images, result.new, result.changed) == (0, 0, 0, 0), f"it does not come to rest: {result}"


def _rewrite(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    os.utime(path, ns=(1, 10**18 + len(data)))


def _instead(path: Path, make: Callable[[Path], object]) -> None:
    """Make something else in the place of a file or a folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        path.unlink()


def _swap(path: Path) -> None:
    other = path.with_name("10.png")
    path.rename(path.with_suffix(".x"))
    other.rename(path)
    path.with_suffix(".x").rename(other)


def _touch(path: Path) -> None:
    os.utime(path, ns=(1, 10**18))


CHANGES: dict[str, Callable[[Path], object]] = {
    "touched": _touch,
    "replaced": lambda path: write_picture(path, 999),
    "replaced by the copy of another": lambda path: shutil.copy(path.with_name("10.png"), path),
    "swapped with another": _swap,
    "truncated": lambda path: _rewrite(path, path.read_bytes()[:300]),
    "emptied": lambda path: _rewrite(path, b""),
    "appended to": lambda path: _rewrite(path, path.read_bytes() + b"more"),
    "overwritten by text": lambda path: _rewrite(path, b"no image"),
    "deleted": lambda path: _remove([path]),
    "moved away": lambda path: path.rename(path.parents[2] / "away.png"),
    "made a folder": lambda path: _instead(path, Path.mkdir),
    "made a FIFO": lambda path: _instead(path, os.mkfifo),
    "made a link to another": lambda path: _instead(path, lambda link: link.symlink_to("10.png")),
    "made a link to nothing": lambda path: _instead(path, lambda link: link.symlink_to("nothing")),
}
BACK: dict[str, Callable[[Path], object]] = {
    "moved away": lambda path: (path.parents[2] / "away.png").rename(path),
    "emptied": lambda path: write_picture(path, 13),
}
WORDS = {
    "truncated": "truncated",
    "overwritten by text": "not_an_image",
    "deleted": "vanished",
    "made a folder": "unreadable",
    "made a FIFO": "unreadable",
    "made a link to nothing": "vanished",
}


@contextmanager
def before_reading(change: Callable[[], object]) -> Iterator[None]:
    """Do something once, after the plan is made and before a file is read."""
    real, left, first = worker.embed_shard, [change], threading.Lock()

    def embed_shard(job: worker.EmbedJob, shard: int, cores: int) -> object:
        with first:
            while left:
                left.pop()()
        return real(job, shard, cores)

    with mock.patch("pipelines.embedding.beam.embed_shard", embed_shard):
        yield


def embed_here(corpus: Path, store: Path, **options: object) -> tuple[EmbedResult, int]:
    """Embed in this process; also, how many images the engine was given."""
    engine = CountingEngine(batch_size=8)
    worker.engine_for.cache_clear()
    with mock.patch.object(worker, "open_engine", lambda *_args, **_options: engine):
        result = embed(str(corpus), store, EmbedOptions(shard_images=7, **options))  # type: ignore[arg-type]
    worker.engine_for.cache_clear()
    return result, engine.images


def _corpus(folder: Path, count: int = 30) -> Path:
    for number in range(count):
        write_picture(folder / "corpus" / "abc"[number % 3] / f"{number:02}.png", number)
    return (folder / "corpus").resolve()


def growing_file(folder: Path) -> None:
    """A file that grows while it is read is told of, and the next run has it whole."""
    corpus, store = _corpus(folder), folder / "store"
    path = corpus / "a" / "12.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    inode, real = path.stat().st_ino, os.pread

    def pread(descriptor: int, size: int, start: int) -> bytes:
        data = real(descriptor, size, start)
        if os.fstat(descriptor).st_ino == inode and path.stat().st_size < len(whole):
            time.sleep(0.01)
            with path.open("ab") as file:
                file.write(whole[path.stat().st_size :][:150])
        return data

    with mock.patch.object(os, "pread", pread):
        result, _ = embed_here(corpus, store)
    assert result.failures == {"unreadable": 1}, result
    path.write_bytes(whole)
    result, images = embed_here(corpus, store)
    assert result.embedded == images == 1, result
    contents, labels = invariant.folder_contents(corpus)
    invariant.check(store, contents, labels=labels)


def slow_copy(folder: Path, seed: int) -> None:
    """An image that another process is still copying, embedded over and over: once it is whole, it is right."""
    corpus, store = _corpus(folder, 3), folder / "store"
    path, rng = corpus / "a" / "slow.png", random.Random(seed)
    whole = write_picture(folder / "whole.png", 77).read_bytes()

    def copy() -> None:
        with path.open("wb", buffering=0) as file:
            for start in range(0, len(whole), 40):
                file.write(whole[start : start + 40])
                time.sleep(rng.uniform(0, 0.15))

    copying = threading.Thread(target=copy)
    copying.start()
    wait_for(path)
    while copying.is_alive():
        embed_here(corpus, store)
    copying.join()
    embed_here(corpus, store)
    contents, labels = invariant.folder_contents(corpus)
    partly = [key(whole[:n]).hex() for n in range(len(whole))]
    invariant.check(store, contents, labels=labels, former=_embedded(store) & set(partly))


def _embedded(store: Path) -> set[str]:
    (table,) = (store / "features").glob("*.lance")
    return {row["sha256"].hex() for row in invariant.rows_of(table)}


def replaced_tar(folder: Path, order: str) -> None:
    """A tar that is replaced after it was listed: no member gets the features of another."""
    pictures = [write_picture(folder / f"{number}.png", number) for number in range(8)]
    size = max(path.stat().st_size for path in pictures)
    for path in pictures:
        path.write_bytes(path.read_bytes() + bytes(size - path.stat().st_size))  # so that members change places
    tar, store = folder / "pictures.tar", folder / "store"
    _write_tar(tar, pictures)

    def change() -> None:
        again = {"reversed": pictures[::-1], "shorter": pictures[:3], "other": [pictures[0], *pictures[5:]]}[order]
        _write_tar(folder / "new.tar", again)
        (folder / "new.tar").replace(tar)

    with before_reading(change):
        embed_here(tar, store)
    embed_here(tar, store)
    with tarfile.open(tar) as file:
        there = {sources.uri_of(tar, name): file.extractfile(name).read() for name in file.getnames()}  # type: ignore
    rows = {row["uri"]: row for row in invariant.rows_of(store / "catalog.lance")}
    wrong = [uri for uri, data in there.items() if rows[uri]["sha256"] != key(data)]
    assert not wrong, f"these have the features of others: {wrong}"
    lost = {uri: row["error_type"] for uri, row in rows.items() if uri not in there and row["status"] == "ok"}
    assert not lost, f"these are not there any more and were not when they were read: {lost}"
    invariant.sound(store)


def _write_tar(path: Path, pictures: Sequence[Path]) -> None:
    with tarfile.open(path, "w") as tar:
        for picture in pictures:
            tar.add(picture, picture.name)


# --- folders that change while they are listed


def changing_folder(folder: Path, how: str, nth: int) -> None:
    """A folder changes when its nth file is listed: what stays is embedded once, and a rerun has it all."""
    corpus, store = _corpus(folder), folder / "store"
    before = {sources.uri_of(path): path.read_bytes() for path in corpus.rglob("*.png")}
    real, calls = files.size_and_mtime, iter(range(1, 10**6))

    def listed(path: str) -> tuple[int, int]:
        found = real(path)
        if next(calls) == nth:
            FOLDERS[how](corpus)
        return found

    with mock.patch.object(files, "size_and_mtime", listed):
        embed_here(corpus, store)
    if how == AWAY:
        corpus.with_name("away").rename(corpus / "b")
    after, labels = invariant.folder_contents(corpus)
    if how == "becomes a file":
        after.pop(sources.uri_of(corpus / "b")), labels.pop(sources.uri_of(corpus / "b"))
    rows = {row["uri"]: row for row in invariant.rows_of(store / "catalog.lance")}
    lost = [uri for uri in before.keys() & after.keys() if uri not in rows and how != AWAY]
    assert not lost, f"these were there all the time and were not embedded: {lost}"
    embed_here(corpus, store)
    gone = {row["uri"]: row for row in invariant.rows_of(store / "catalog.lance") if row["uri"] not in after}
    expected: dict[str, bytes | str] = dict(after)
    for uri, row in gone.items():
        assert uri in before, f"{uri} was never there"
        expected[uri] = row["sha256"].hex() if row["status"] == "ok" else "vanished"
        if how == "becomes a link to its parent":  # which cannot be listed: what was there stays
            labels[uri] = Path(uri).parent.name
    invariant.check(store, expected, labels=labels)
    result, images = embed_here(corpus, store)
    assert (result.embedded, images, result.failed) == (0, 0, 0), f"it does not come to rest: {result}"


AWAY = "is away for a run"
FOLDERS: dict[str, Callable[[Path], object]] = {
    "grows": lambda corpus: [write_picture(corpus / name / f"{n}.png", 100 + n) for n, name in enumerate("aabbccdd")],
    "shrinks": lambda corpus: _remove(corpus.rglob("*5.png")),
    "is emptied": lambda corpus: _remove((corpus / "b").iterdir()),
    "is removed": lambda corpus: _instead(corpus / "b", lambda _: None),
    "is renamed": lambda corpus: (corpus / "b").rename(corpus / "z"),
    "is renamed to come earlier": lambda corpus: (corpus / "c").rename(corpus / "0"),
    AWAY: lambda corpus: (corpus / "b").rename(corpus.with_name("away")),
    "becomes a file": lambda corpus: _instead(corpus / "b", Path.touch),
    "becomes a link to its parent": lambda corpus: _instead(corpus / "b", lambda link: link.symlink_to(corpus)),
}


def restless_folder(folder: Path, seed: int) -> None:
    """Another thread adds, renames and removes files all the time; when it is done, a run has exactly what is there."""
    corpus, store, rng = _corpus(folder), folder / "store", random.Random(seed)
    done = threading.Event()

    def work() -> None:
        for number in range(100, 400):
            files = sorted(corpus.rglob("*.png"))
            name = rng.choice("abcd")
            match rng.randrange(4):
                case 0 | 1:
                    write_picture(folder / "new.png", number)
                    (corpus / name).mkdir(exist_ok=True)
                    (folder / "new.png").rename(corpus / name / f"{number}.png")
                case 2:
                    rng.choice(files).unlink()
                case 3:
                    rng.choice(files).rename(corpus / "a" / f"{number}.png")
            time.sleep(0.003)
        done.set()

    restless = threading.Thread(target=work)
    restless.start()
    while not done.is_set():
        embed_here(corpus, store)
    restless.join()
    embed_here(corpus, store, accept_removed=True)  # if the runs were slow, more than half may have gone since the last
    there, labels = invariant.folder_contents(corpus)
    rows = invariant.rows_of(store / "catalog.lance")
    expected: dict[str, bytes | str] = dict(there)
    expected |= {
        row["uri"]: row["sha256"].hex() if row["status"] == "ok" else "vanished"
        for row in rows
        if row["uri"] not in there
    }
    invariant.check(store, expected, labels=labels, former=_embedded(store))


# --- the list


def faults(seed: int, count: int) -> Faults:
    """Each race once or a few times; the random ones ``count // 10`` times."""
    yield "readers of all kinds", partial(many_readers, whats=["dataset", "status", "predict", "dataset"], runs=40)
    yield "readers, real tiers", partial(many_readers, whats=["dataset", "status"], runs=60, small=False)
    for killed in (False, True):
        yield f"a pinned reader, {killed=}", partial(pinned_reader, killed=killed)
    for after in (SPEC.set_name, "labels", "catalog"):
        yield f"a commit that ends after {after}", partial(half_a_commit, after=after)
    yield "a writer and gc", partial(writers, names=["x"], seconds=15, cleaners=1)
    yield "two writers", partial(writers, names=["x", "y"], seconds=15, cleaners=0)
    yield "three writers and two gc", partial(writers, names=["x", "y", "z"], seconds=30, cleaners=2)
    yield "a store made by two runs", made_twice
    yield "a store made by six threads", made_by_many
    yield "gc twice at once", gc_twice
    for nth in range(1, gc_calls() + 1):
        yield f"gc killed at call {nth}", partial(gc_killed, nth=nth, half=nth % 2 == 0)
    for how in CHANGES:
        yield f"a file {how}", partial(changed_file, how=how)
    for order in ("reversed", "shorter", "other"):
        yield f"a tar replaced, {order}", partial(replaced_tar, order=order)
    yield "a file that grows while it is read", growing_file
    for how in FOLDERS:
        for nth in (1, 11, 15, 30):
            yield f"a folder {how} at file {nth}", partial(changing_folder, how=how, nth=nth)
    for number in range(count // 10):
        yield f"a reader stopped {number}", partial(stopped_reader, seed=100 * seed + number)
        yield f"a slow copy {number}", partial(slow_copy, seed=100 * seed + number)
        yield f"a restless folder {number}", partial(restless_folder, seed=100 * seed + number)
