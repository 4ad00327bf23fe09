"""The main job on real files, real Beam and real Lance; only the CNN is a fake that counts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from decoding import decoded

from conftest import CountingEngine, first_canary, write_picture
from featurestore.errors import (
    BucketError,
    ImageError,
    RunnerError,
    SourceError,
    SpecMismatch,
    StoreLocked,
    TooManyFailures,
    UsageError,
)
from featurestore.heartbeats import Watch
from featurestore.journal import PLAN
from featurestore.store import FeatureStore
from pipelines import runners
from pipelines.backbones.engine_options import EngineOptions
from pipelines.backbones.table import Tap
from pipelines.embedding import beam, heartbeat, worker
from pipelines.embedding.contents import Contents
from pipelines.embedding.embed import EmbedResult, embed
from pipelines.embedding.job import EmbedJob
from pipelines.options import EmbedOptions

SMALL_SHARDS = EmbedOptions(shard_images=7, engine=EngineOptions(batch_size=8))


def catalog(store: Path) -> dict[str, dict]:
    """Catalog rows by the file's name."""
    table = FeatureStore(store).catalog.read(FeatureStore(store).catalog.schema.names)
    return {row["uri"].rsplit("/", 1)[-1]: row for row in table.to_pylist()}


def counts(result: EmbedResult) -> dict[str, int]:
    names = ("seen", "new", "changed", "unchanged", "deduplicated", "embedded", "failed")
    return {name: getattr(result, name) for name in names if getattr(result, name)}


def test_first_run_embeds_all_and_second_nothing(corpus: Path, tmp_path: Path, engine: CountingEngine) -> None:
    first = embed(str(corpus), tmp_path / "store", SMALL_SHARDS)
    assert counts(first) == {"seen": 30, "new": 30, "embedded": 30}
    assert engine.images == 30
    second = embed(str(corpus), tmp_path / "store", SMALL_SHARDS)
    assert counts(second) == {"seen": 30, "unchanged": 30}
    assert engine.images == 30
    store = FeatureStore(tmp_path / "store")
    assert store.table(first.feature_set).count() == store.catalog.count() == store.labels.count() == 30
    assert not list((store.path / "staging").iterdir())


def test_what_a_run_says_of_itself(
    corpus: Path, tmp_path: Path, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(self: CountingEngine, pixels: np.ndarray) -> np.ndarray:
        time.sleep(0.05)
        return plain(self, pixels)

    plain = CountingEngine.__call__
    monkeypatch.setattr(CountingEngine, "__call__", slowly)
    told = embed(str(corpus), tmp_path / "store", SMALL_SHARDS).to_json()
    seconds = told.pop("seconds")
    total = seconds.pop("total")
    assert seconds.keys() == {"plan", "read", "decode", "infer", "write", "commit"}
    assert min(seconds.values()) > 0 and max(seconds.values()) < 2 * total
    assert seconds["infer"] >= 5 * 0.05 > seconds["read"]  # five shards of a batch at most
    assert told.pop("images_per_second") == pytest.approx(30 / total, rel=0.05)
    run_id, name, fingerprint = (told.pop(key) for key in ("run_id", "feature_set", "fingerprint"))
    ((worker, did),) = told.pop("workers").items()
    assert worker == f"{os.uname().nodename}-{os.getpid()}"
    spent = did.pop("seconds")
    assert did == {"shards": 5, "images": 30, "failures": {}}
    assert spent == {stage: pytest.approx(seconds[stage], abs=0.01) for stage in ("read", "decode", "infer", "write")}
    labels = told.pop("labels")
    assert (labels["classes"], labels["unlabelled"]) == ({"a": 10, "b": 10, "c": 10}, 0)
    nothing = {
        "changed": 0, "unchanged": 0, "deduplicated": 0, "failed": 0, "failures": {}, "failed_before": 0,
        "listed_before": 0, "removed": 0, "not_removed": 0, "columns": {}, "notes": [], "recovered": [], "ignored": {},
        "problems": [],
    }  # fmt: skip
    assert told == nothing | {
        "seen": 30,
        "new": 30,
        "embedded": 30,
        "labels_changed": 30,
        "source": f"file://{corpus}",
    }
    again = embed(str(corpus), tmp_path / "store", SMALL_SHARDS).to_json()
    assert again.pop("run_id") > run_id
    assert (again.pop("feature_set"), again.pop("fingerprint")) == (name, fingerprint)
    seconds = again.pop("seconds")
    assert [seconds[stage] for stage in ("read", "decode", "infer", "write")] == [0, 0, 0, 0]
    assert again.pop("workers") == {}
    del again["labels"]
    assert again == nothing | {
        "seen": 30,
        "new": 0,
        "unchanged": 30,
        "embedded": 0,
        "labels_changed": 0,
        "source": f"file://{corpus}",
        "listed_before": 30,
        "images_per_second": 0.0,
    }


def test_features_belong_to_their_pictures(corpus: Path, tmp_path: Path, engine: CountingEngine) -> None:

    result = embed(str(corpus), tmp_path / "store", SMALL_SHARDS)
    data = FeatureStore(tmp_path / "store").dataset()
    assert data.fingerprint == result.fingerprint
    for row, uri, label in zip(data.X, data.uris, data.y, strict=True):
        path = Path(uri.removeprefix("file://"))
        expected = engine(decoded(path.read_bytes(), 224).pixels[None])[0].astype(np.float16)
        assert np.array_equal(row, expected.astype(np.float32))
        assert label == path.parent.name


@pytest.mark.parametrize(
    "options", [EmbedOptions(shard_images=4), EmbedOptions(engine=EngineOptions(batch_size=3)), EmbedOptions()]
)
def test_shards_and_batches_do_not_move_features(
    corpus: Path, tmp_path: Path, engine: CountingEngine, options: EmbedOptions
) -> None:
    embed(str(corpus), tmp_path / "one", SMALL_SHARDS)
    embed(str(corpus), tmp_path / "other", options)
    one, other = FeatureStore(tmp_path / "one").dataset(), FeatureStore(tmp_path / "other").dataset()
    assert one.fingerprint == other.fingerprint
    assert np.array_equal(one.X, other.X) and np.array_equal(one.ids, other.ids)
    assert np.array_equal(one.splits, other.splits)


def test_one_new_file_embeds_one(corpus: Path, tmp_path: Path, engine: CountingEngine) -> None:
    embed(str(corpus), tmp_path / "store", SMALL_SHARDS)
    before = FeatureStore(tmp_path / "store").dataset()
    write_picture(corpus / "b" / "new.png", 99)
    assert counts(embed(str(corpus), tmp_path / "store", SMALL_SHARDS)) == {
        "seen": 31, "new": 1, "unchanged": 30, "embedded": 1,
    }  # fmt: skip
    assert engine.images == 31
    after = FeatureStore(tmp_path / "store").dataset()
    kept = np.isin(after.ids, before.ids)
    assert np.array_equal(after.splits[kept], before.splits)


def test_changed_file_is_new_content(corpus: Path, tmp_path: Path, engine: CountingEngine) -> None:
    embed(str(corpus), tmp_path / "store", SMALL_SHARDS)
    old = catalog(tmp_path / "store")["00.png"]
    write_picture(corpus / "a" / "00.png", 1000, side=17)
    assert counts(embed(str(corpus), tmp_path / "store", SMALL_SHARDS)) == {
        "seen": 30, "changed": 1, "unchanged": 29, "embedded": 1,
    }  # fmt: skip
    rows = catalog(tmp_path / "store")
    assert len(rows) == FeatureStore(tmp_path / "store").catalog.count() == 30
    assert rows["00.png"]["sha256"] != old["sha256"] and rows["00.png"]["width"] == 17


def test_touched_file_is_read_but_not_embedded(corpus: Path, tmp_path: Path, engine: CountingEngine) -> None:
    embed(str(corpus), tmp_path / "store", SMALL_SHARDS)
    os.utime(corpus / "a" / "00.png", ns=(1, 1))
    assert counts(embed(str(corpus), tmp_path / "store", SMALL_SHARDS)) == {
        "seen": 30, "changed": 1, "unchanged": 29, "deduplicated": 1,
    }  # fmt: skip
    row = catalog(tmp_path / "store")["00.png"]
    assert (row["width"], row["height"], row["format"]) == (16, 16, "png")
    assert counts(embed(str(corpus), tmp_path / "store", SMALL_SHARDS)) == {"seen": 30, "unchanged": 30}


def test_ten_copies_embed_once(tmp_path: Path, engine: CountingEngine) -> None:
    original = write_picture(tmp_path / "corpus" / "a" / "0.png", 0)
    for number in range(1, 10):  # over several shards
        shutil.copy(original, tmp_path / "corpus" / "a" / f"{number}.png")
    result = embed(str(tmp_path / "corpus"), tmp_path / "store", EmbedOptions(shard_images=3))
    assert counts(result) == {"seen": 10, "new": 10, "deduplicated": 9, "embedded": 1}
    assert engine.images == 1
    rows = catalog(tmp_path / "store")
    assert len(rows) == 10 and len({row["sha256"] for row in rows.values()}) == 1
    assert {(row["width"], row["format"]) for row in rows.values()} == {(16, "png")}


def test_relabelling_embeds_nothing(corpus: Path, tmp_path: Path, engine: CountingEngine) -> None:
    embed(str(corpus), tmp_path / "store", SMALL_SHARDS)
    (corpus / "a" / "00.png").rename(corpus / "b" / "00.png")
    result = embed(str(corpus), tmp_path / "store", SMALL_SHARDS)
    assert (result.embedded, result.deduplicated, result.labels_changed) == (0, 1, 1)
    data = FeatureStore(tmp_path / "store").dataset()
    assert len(data) == 30 and not data.excluded
    moved = [label for label, uri in zip(data.y, data.uris, strict=True) if uri.endswith("/00.png")]
    assert moved == ["b"]


def test_second_backbone_leaves_the_first_alone(corpus: Path, tmp_path: Path, engine: CountingEngine) -> None:
    one = embed(str(corpus), tmp_path / "store", SMALL_SHARDS)
    other = embed(str(corpus), tmp_path / "store", replace(SMALL_SHARDS, dtype="float32"))
    assert counts(other) == {"seen": 30, "new": 30, "embedded": 30}
    store = FeatureStore(tmp_path / "store")
    assert store.sets() == sorted([one.feature_set, other.feature_set])
    assert store.catalog.count() == 30
    assert counts(embed(str(corpus), tmp_path / "store", SMALL_SHARDS)) == {"seen": 30, "unchanged": 30}


def test_failures_are_rows(corpus: Path, tmp_path: Path, engine: CountingEngine) -> None:
    good = (corpus / "a" / "00.png").read_bytes()
    bad = {"empty.png": b"", "text.jpg": b"hello", "cut.png": good[:200]}
    for name, data in bad.items():
        (corpus / "c" / name).write_bytes(data)
        (corpus / "c" / f"copy-{name}").write_bytes(data)
    os.mkfifo(corpus / "c" / "pipe.jpg")
    (corpus / "c" / "gone.png").symlink_to(tmp_path / "nowhere")
    result = embed(str(corpus), tmp_path / "store", SMALL_SHARDS)
    assert result.failures == {"empty": 2, "not_an_image": 2, "truncated": 2, "unreadable": 1, "vanished": 1}
    assert (result.seen, result.embedded, result.failed) == (38, 30, 8)
    rows = catalog(tmp_path / "store")
    assert len(rows) == 38
    for name in [*bad, *(f"copy-{name}" for name in bad), "pipe.jpg", "gone.png"]:
        assert rows[name]["status"] == "failed" and rows[name]["error"], name
    result.check(8 / 38)
    with pytest.raises(TooManyFailures, match=r"8 of 38 files failed \(21.1%\)"):
        result.check(0.2)


def test_failed_files_are_retried_only_on_request(corpus: Path, tmp_path: Path, engine: CountingEngine) -> None:
    (corpus / "a" / "bad.png").write_bytes(b"not an image")
    hidden = corpus / "a" / "late.png"
    hidden.symlink_to(tmp_path / "late.png")
    embed(str(corpus), tmp_path / "store", SMALL_SHARDS)
    again = embed(str(corpus), tmp_path / "store", SMALL_SHARDS)
    assert (again.failed, again.failed_before, again.unchanged) == (0, 2, 32)
    assert again.failure_rate == 2 / 32
    retried = embed(str(corpus), tmp_path / "store", EmbedOptions(retry_failed=True))
    assert (retried.failed, retried.failed_before, retried.new, retried.unchanged) == (2, 0, 2, 30)
    write_picture(tmp_path / "late.png", 77)
    healed = embed(str(corpus), tmp_path / "store", SMALL_SHARDS)  # another size and time: no request needed
    assert (healed.embedded, healed.changed) == (1, 1)
    assert FeatureStore(tmp_path / "store").catalog.count() == 32


def test_files_that_failed_are_retried_beside_new_and_changed_ones(
    corpus: Path, tmp_path: Path, engine: CountingEngine
) -> None:
    """The help says "as well"."""
    late = write_picture(corpus / "a" / "late.png", 77)
    whole, stat = late.read_bytes(), late.stat()
    late.write_bytes(bytes(len(whole)))  # as it is while it is copied
    os.utime(late, ns=(1, 1))
    embed(str(corpus), tmp_path / "store", SMALL_SHARDS)
    late.write_bytes(whole)
    os.utime(late, ns=(1, 1))  # size and time are as before: only a request finds it
    assert late.stat().st_size == stat.st_size
    write_picture(corpus / "b" / "new.png", 78)
    write_picture(corpus / "c" / "02.png", 79, side=17)
    result = embed(str(corpus), tmp_path / "store", replace(SMALL_SHARDS, retry_failed=True))
    assert counts(result) == {"seen": 32, "new": 2, "changed": 1, "unchanged": 29, "embedded": 3}
    assert catalog(tmp_path / "store")["late.png"]["status"] == "ok"


def test_bundles_repeated_add_nothing_twice(corpus: Path, tmp_path: Path, engine: CountingEngine) -> None:
    options = EmbedOptions(shard_images=7, runner_arguments=("--direct_runner_bundle_repeat=2",))
    result = embed(str(corpus), tmp_path / "store", options)
    assert counts(result) == {"seen": 30, "new": 30, "embedded": 30}
    assert engine.images == 30
    assert FeatureStore(tmp_path / "store").table(result.feature_set).count() == 30


@pytest.mark.parametrize("error", [UsageError("it broke"), OSError(28, "it broke", "a file"), ValueError("it broke")])
def test_an_error_in_the_engine_keeps_finished_shards(
    corpus: Path, tmp_path: Path, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    calm, one_by_one = CountingEngine.__call__, threading.Lock()

    def fails_late(self: CountingEngine, pixels: np.ndarray) -> np.ndarray:
        with one_by_one:
            if self.images >= 14:
                raise error
            return calm(self, pixels)

    monkeypatch.setattr(CountingEngine, "__call__", fails_late)
    with pytest.raises(Exception, match="it broke") as caught:
        embed(str(corpus), tmp_path / "store", SMALL_SHARDS)
    assert caught.value is error or isinstance(error, ValueError)  # Beam wraps what it does not know
    store = FeatureStore(tmp_path / "store")
    assert store.catalog.count() == store.table(store.resolve()).count() == 14
    monkeypatch.setattr(CountingEngine, "__call__", calm)
    assert counts(embed(str(corpus), tmp_path / "store", SMALL_SHARDS)) == {
        "seen": 30, "new": 16, "unchanged": 14, "embedded": 16,
    }  # fmt: skip


def lies(monkeypatch: pytest.MonkeyPatch, leaves: int, error: Exception | None = None) -> list[list[int]]:
    """Let the runner leave the last shards undone in its first runs, and report success or fail; which it was given."""
    plain, given = beam.run_shards, list[list[int]]()

    def run_shards(job: EmbedJob, shards: list[int], runner: runners.Runner, arguments: tuple[str, ...]) -> None:
        given.append(list(shards))
        if len(given) > leaves:
            plain(job, shards, runner, arguments)
            return
        if shards[:-2]:
            plain(job, shards[:-2], runner, arguments)
        if error is not None:
            raise error

    monkeypatch.setattr(beam, "run_shards", run_shards)
    return given


@pytest.mark.parametrize("error", [None, RunnerError("The scheduler is gone.")], ids=["success", "an error"])
def test_what_a_runner_has_left_undone_is_run_again_whatever_it_says(
    corpus: Path,
    tmp_path: Path,
    engine: CountingEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception | None,
) -> None:
    given = lies(monkeypatch, 2, error)
    assert counts(embed(str(corpus), tmp_path / "store", SMALL_SHARDS)) == {"seen": 30, "new": 30, "embedded": 30}
    assert given == [[0, 1, 2, 3, 4], [3, 4], [3, 4]] and engine.images == 30
    why = "The scheduler is gone." if error else "it reported success"
    assert caplog.messages == [f"FnApiRunner left 2 of 5 shards undone ({why}): they are run again."] * 2


@pytest.mark.parametrize(
    ("error", "why"),
    [(None, "The runner reported success"), (RunnerError("The scheduler is gone."), "The scheduler is gone")],
    ids=["success", "an error"],
)
def test_a_run_that_lacks_shards_in_the_end_says_how_many_images_they_are(
    corpus: Path,
    tmp_path: Path,
    engine: CountingEngine,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
    why: str,
) -> None:
    with monkeypatch.context() as patch:
        given = lies(patch, 99, error)
        with pytest.raises(RunnerError) as left:
            embed(str(corpus), tmp_path / "store", SMALL_SHARDS)
    assert str(left.value) == (f"{why}; 21 images are done and kept, 9 are not: the same command goes on from there.")
    assert left.value.exit_code == 1 and len(given) == 3
    store = FeatureStore(tmp_path / "store")
    assert store.catalog.count() == store.table(store.resolve()).count() == 21
    assert counts(embed(str(corpus), tmp_path / "store", SMALL_SHARDS)) == {
        "seen": 30, "new": 9, "unchanged": 21, "embedded": 9,
    }  # fmt: skip


def test_work_that_fails_is_not_run_again(
    corpus: Path, tmp_path: Path, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = lies(monkeypatch, 99, SpecMismatch("Expected: the same numbers. Got: others."))
    with pytest.raises(SpecMismatch):
        embed(str(corpus), tmp_path / "store", SMALL_SHARDS)
    assert len(given) == 1 and FeatureStore(tmp_path / "store").catalog.count() == 21


def test_a_worker_whose_run_has_ended_stops(
    corpus: Path, tmp_path: Path, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that slept past every timeout: it adds nothing, and ends without reading what is left."""
    store = tmp_path / "store"
    jobs, plain = list[EmbedJob](), CountingEngine.__call__
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    with monkeypatch.context() as patch, pytest.raises(RunnerError):
        patch.setattr(beam, "run_shards", lambda job, *_: jobs.append(job))
        embed(str(corpus), store, EmbedOptions())
    (job, *_rest) = jobs
    late = FeatureStore.create(store).new_run_id("embed")
    job = replace(job, run_id=late)
    staging = job.staging()
    staging.begin(job.feature_set)
    with staging.writer("plan", PLAN) as plan:
        rows = [(f"file://{path}", path.stat().st_size, 0, -1, False) for path in sorted(corpus.rglob("*.png"))]
        plan.write_batch(
            pa.record_batch([pa.array(c, f.type) for c, f in zip(zip(*rows, strict=True), PLAN, strict=True)], PLAN)
        )

    def ended_meanwhile(self: CountingEngine, pixels: np.ndarray) -> np.ndarray:
        if self.images == 0 and pixels[0].tobytes() not in first_canary(pixels.shape[1]):
            staging.remove()
            time.sleep(0.3)
        return plain(self, pixels)

    monkeypatch.setattr(CountingEngine, "__call__", ended_meanwhile)
    with pytest.raises(RunnerError, match=f"^The run {late} has ended: this worker's shard is not needed.$"):
        worker.embed_shard(job, 0)
    assert FeatureStore(store).catalog.count() == 0 and not staging.folder.exists()


def test_shards_of_a_process_share_one_engine_and_its_threads(
    corpus: Path, tmp_path: Path, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a Dask worker of four threads that may use one core."""
    opened, names, plain = list[tuple[object, ...]](), set[str](), CountingEngine.__call__
    jobs = list[EmbedJob]()

    def open_slowly(*given: object) -> CountingEngine:
        time.sleep(0.2)
        opened.append(given)
        return engine

    def noted(self: CountingEngine, pixels: np.ndarray) -> np.ndarray:
        if pixels[0].tobytes() not in first_canary(pixels.shape[1]):
            names.add(threading.current_thread().name)
        return plain(self, pixels)

    def run_shards(job: EmbedJob, shards: list[int], *_: object) -> None:
        jobs.append(job)
        worker.engine_for.cache_clear()
        worker.checked_engine.cache_clear()
        opened.clear()
        with ThreadPoolExecutor(4) as tasks:
            list(tasks.map(lambda shard: worker.embed_shard(job, shard, 1), shards))

    monkeypatch.setattr(worker, "open_engine", open_slowly)
    monkeypatch.setattr(worker, "available_cores", lambda: 8)
    monkeypatch.setattr(CountingEngine, "__call__", noted)
    monkeypatch.setattr(beam, "run_shards", run_shards)
    assert embed(str(corpus), tmp_path / "store", SMALL_SHARDS).embedded == 30
    assert [threads for *_, threads, _graph in opened] == [1]
    assert 1 <= len(names) <= worker.THREADS_PER_CORE


def test_manifest_gives_labels_splits_and_groups(corpus: Path, tmp_path: Path, engine: CountingEngine) -> None:
    names = [f"corpus/{'abc'[n % 3]}/{n:02}.png" for n in range(30)]
    table = pa.table(
        {
            "path": names,
            "label": [f"class {n % 2}" for n in range(30)],
            "split": ["test" if n < 6 else "val" if n < 12 else "train" for n in range(30)],
            "group": [f"g{n // 3}" for n in range(30)],
        }
    )
    pq.write_table(table, tmp_path / "corpus.parquet")
    result = embed(str(tmp_path / "corpus.parquet"), tmp_path / "store", SMALL_SHARDS)
    assert (result.embedded, result.labels_changed) == (30, 30)
    data = FeatureStore(tmp_path / "store").dataset()
    assert {split: int((data.splits == split).sum()) for split in ("train", "val", "test")} == {
        "train": 18, "val": 6, "test": 6,
    }  # fmt: skip
    assert set(data.y) == {"class 0", "class 1"}


def test_a_corpus_may_be_called_anything(corpus: Path, tmp_path: Path, engine: CountingEngine) -> None:
    odd = corpus.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    result = embed(str(odd), tmp_path / "store", SMALL_SHARDS)
    assert result.embedded == 30
    (run,) = FeatureStore(tmp_path / "store").runs()
    assert run.parameters["source"].endswith(r"\xff")


def test_tar_shards(corpus: Path, tmp_path: Path, engine: CountingEngine) -> None:
    for shard in range(2):
        with tarfile.open(tmp_path / f"shard-{shard:03}.tar", "w") as tar:
            for number in range(shard, 30, 2):
                label = tmp_path / "label"
                label.write_text("abc"[number % 3])
                tar.add(corpus / "abc"[number % 3] / f"{number:02}.png", f"{number:04}.png")
                tar.add(label, f"{number:04}.cls")
    result = embed(str(tmp_path / "shard-{000..001}.tar"), tmp_path / "store", SMALL_SHARDS)
    assert counts(result) == {"seen": 30, "new": 30, "embedded": 30}
    folder = embed(str(corpus), tmp_path / "store", SMALL_SHARDS)  # the same contents under other names
    assert counts(folder) == {"seen": 30, "new": 30, "deduplicated": 30}
    data = FeatureStore(tmp_path / "store").dataset()
    assert len(data) == 30 and sorted(set(data.y)) == ["a", "b", "c"]


def test_unlabelled_folder(tmp_path: Path, engine: CountingEngine) -> None:
    for number in range(5):
        write_picture(tmp_path / "pictures" / f"{number}.png", number)
    result = embed(str(tmp_path / "pictures"), tmp_path / "store", SMALL_SHARDS)
    assert (result.embedded, result.labels_changed) == (5, 0)
    assert FeatureStore(tmp_path / "store").to_arrow().num_rows == 5


def test_file_that_vanishes_between_plan_and_read(
    corpus: Path, tmp_path: Path, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.sources import corpus as sources

    read = sources.read

    def deletes_first(uri: str, offset: int, size: int) -> tuple[bytes, int, int]:
        if uri.endswith("/05.png"):
            Path(sources.path_of(uri)).unlink()
        return read(uri, offset, size)

    monkeypatch.setattr(sources, "read", deletes_first)
    result = embed(str(corpus), tmp_path / "store", SMALL_SHARDS)
    assert (result.embedded, result.failures) == (29, {"vanished": 1})


def test_refusals_leave_nothing_behind(corpus: Path, tmp_path: Path, engine: CountingEngine) -> None:
    store = tmp_path / "store"
    (tmp_path / "nothing").mkdir()
    with pytest.raises(SourceError, match="has no images"):
        embed(str(tmp_path / "nothing"), store)
    assert not list((store / "staging").iterdir())
    with pytest.raises(UsageError, match="DirectRunner is refused"):
        embed(str(corpus), store, EmbedOptions(runner="DirectRunner"))
    with FeatureStore(store).lock(), pytest.raises(StoreLocked) as locked:
        embed(str(corpus), store, SMALL_SHARDS)
    assert locked.value.exit_code == 75
    assert embed(str(corpus), store, SMALL_SHARDS).embedded == 30


def test_progress_that_cannot_be_read_ends_nothing(
    corpus: Path, tmp_path: Path, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def away(_: Watch) -> int:
        asked.set()
        raise BucketError("The bucket is away.")

    def slowly(self: CountingEngine, pixels: np.ndarray) -> np.ndarray:
        features = plain(self, pixels)
        assert not self.images or asked.wait(60)  # the canary comes before the run
        return features

    plain = CountingEngine.__call__
    monkeypatch.setattr(CountingEngine, "__call__", slowly)
    monkeypatch.setattr(Watch, "read", away)
    done = embed(str(corpus), tmp_path / "store", SMALL_SHARDS, progress=lambda *_: pytest.fail("told"))
    assert counts(done) == {"seen": 30, "new": 30, "embedded": 30}


def test_progress_reaches_the_total(corpus: Path, tmp_path: Path, engine: CountingEngine) -> None:
    told: list[tuple[int, int]] = []
    embed(str(corpus), tmp_path / "store", SMALL_SHARDS, lambda done, total: told.append((done, total)))
    assert told[-1] == (30, 30)


def test_another_feature_set_over_a_corpus_that_grew(corpus: Path, tmp_path: Path, engine: CountingEngine) -> None:
    """Every catalog row is replaced, and there is one more."""
    embed(str(corpus), tmp_path / "store", SMALL_SHARDS)
    write_picture(corpus / "a" / "new.png", 77)
    second = embed(str(corpus), tmp_path / "store", replace(SMALL_SHARDS, pooling="max"))
    assert counts(second) == {"seen": 31, "new": 31, "embedded": 31}
    assert FeatureStore(tmp_path / "store").catalog.count() == 31


def test_features_beyond_float16_are_failures_that_name_the_way_out(
    corpus: Path, tmp_path: Path, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = CountingEngine.__call__

    def loud(self: CountingEngine, pixels: np.ndarray) -> np.ndarray:
        vectors = plain(self, pixels)
        vectors[vectors[:, 0] > 0.5] *= 1e6
        return vectors

    monkeypatch.setattr(CountingEngine, "__call__", loud)
    result = embed(str(corpus), tmp_path / "store", SMALL_SHARDS)
    assert 0 < result.failures["overflow"] < 30 and result.embedded == 30 - result.failed
    assert "--dtype float32" in next(r["error"] for r in catalog(tmp_path / "store").values() if r["error"])
    again = embed(str(corpus), tmp_path / "store", SMALL_SHARDS)
    assert counts(again) == {"seen": 30, "unchanged": 30}
    wide = embed(str(corpus), tmp_path / "wide", replace(SMALL_SHARDS, dtype="float32"))
    assert (wide.embedded, wide.failed) == (30, 0)


@pytest.fixture
def opens(engine: CountingEngine, monkeypatch: pytest.MonkeyPatch) -> list[Tap]:
    """The taps for which an engine was opened."""
    opened: list[Tap] = []
    monkeypatch.setattr(worker, "open_engine", lambda tap, *_: opened.append(tap) or engine)
    return opened


def test_an_engine_is_opened_only_when_there_is_something_to_embed(
    corpus: Path, tmp_path: Path, engine: CountingEngine, opens: list[Tap]
) -> None:
    store = tmp_path / "store"
    first = embed(str(corpus), store)
    assert (len(opens), engine.canaries) == (1, 2)  # the set's first, and what it is compared with
    worker.engine_for.cache_clear()
    again = embed(str(corpus), store)
    assert (again.seen, again.embedded, len(opens), engine.canaries) == (30, 0, 1, 2)
    assert (again.feature_set, again.fingerprint) == (first.feature_set, first.fingerprint)
    write_picture(corpus / "a" / "new.png", 99)
    assert embed(str(corpus), store).embedded == 1
    assert (len(opens), engine.canaries) == (2, 3)  # who adds to a set embeds the canary first
    worker.engine_for.cache_clear()
    other = embed(str(corpus), store, EmbedOptions(dtype="float32"))  # of another width, for all that is known
    assert (other.embedded, len(opens)) == (31, 3)


def test_a_second_run_needs_no_library_that_computes(corpus: Path, tmp_path: Path, engine: CountingEngine) -> None:
    embed(str(corpus), tmp_path / "store")
    code = f"""
import sys
from pipelines.embedding.embed import embed
result = embed({str(corpus)!r}, {str(tmp_path / "store")!r})
assert (result.seen, result.embedded) == (30, 0)
print(sorted({{"openvino", "tensorflow", "keras", "apache_beam"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_vectors_of_another_length_are_refused(
    corpus: Path, tmp_path: Path, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The length is that of the stored set, until the engine is opened."""
    store = tmp_path / "store"
    embed(str(corpus), store)
    write_picture(corpus / "a" / "new.png", 99)
    monkeypatch.setattr(engine, "width", 13, raising=False)
    with pytest.raises(SpecMismatch, match=r"Expected: 12 numbers per image, as in efficientnet-lite0-\w+\. Got: 13"):
        embed(str(corpus), store)
    assert len(FeatureStore(store).runs()) == 1 and not list((store / "staging").glob("*"))


def test_a_shard_waits_for_what_another_has_taken_to_be_embedded_or_to_fail() -> None:
    """Else a copy of an image whose decoding fails a moment later would be told to be good."""
    good, bad, lost = (bytes([n]) * 32 for n in range(1, 4))
    contents, over = Contents(np.array([], "S32")), list[str]()

    def other() -> None:
        contents.wait_for({good, bad, lost})
        over.append("waited")

    with suppress(OSError), contents.of_shard(1):
        assert all(contents.take(key, 1) for key in (good, bad, lost)) and not contents.take(bad, 2)
        thread = threading.Thread(target=other)
        thread.start()
        contents.settle([good])
        contents.fail(bad, ImageError("corrupt", "It is."))
        thread.join(0.1)
        assert not over
        raise OSError("the shard ends")
    thread.join(10)
    assert over and contents.error(bad) is not None
    contents.wait_for([bytes(32)])  # nobody has taken it


def test_contents_of_a_shard_that_failed_are_taken_again() -> None:
    """By the retry of this shard, or by another one that meets them; those of a finished shard are known."""
    known, failed, finished, other = (bytes([n]) * 32 for n in range(1, 5))
    contents = Contents(np.array([known], "S32"))
    with pytest.raises(OSError, match="a lost disk"), contents.of_shard(1):
        assert contents.take(failed, 1) and contents.take(other, 2) and not contents.take(known, 1)
        assert not contents.take(failed, 2)
        raise OSError("a lost disk")
    with contents.of_shard(3):
        assert contents.take(finished, 3) and contents.take(failed, 3)
    assert [contents.take(key, 4) for key in (known, failed, finished, other)] == [False] * 4
    with pytest.raises(OSError, match="again"), contents.of_shard(2):
        raise OSError("again")
    assert contents.take(other, 4)
