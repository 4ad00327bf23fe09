"""The same work twice: bundles repeated, runs at once, a committer that slept while another finished, a shared journal.

The lock keeps writers apart; where it does not, as on a network share without locks or where a user removes its
file, what is committed is still there once.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from faults import Faults
from faults.jobs import JOBS, PATIENCE, Job, child, embed_here, run
from faults.kills import check, sound
from faults.warm import Forked
from featurestore.store import FeatureStore

LOCKED = 75
POINTS = [
    ("pipelines.embedding.worker:embed_shard", "before", 1),
    ("pipelines.embedding.worker:embed_shard", "before", 3),
    ("featurestore.storage.local:os.link", "before", 3),
    ("featurestore.storage.local:os.link", "after", 5),
    ("featurestore.store:FeatureStore.commit", "before", 1),
    ("featurestore.storage.table:Table.commit", "before", 1),
    ("featurestore.storage.table:lance.LanceDataset.commit", "before", 1),
    ("featurestore.storage.table:lance.LanceDataset.commit", "after", 1),
    ("featurestore.storage.table:lance.LanceDataset.commit", "before", 2),
    ("featurestore.storage.table:lance.LanceDataset.commit", "after", 2),
    ("featurestore.storage.table:lance.LanceDataset.commit", "before", 3),
    ("featurestore.storage.table:lance.LanceDataset.commit", "after", 3),
    ("featurestore.journal:Staging.remove", "before", 1),
    ("featurestore.runs:RunRecord.write", "before", 1),
]
MAKING = [  # the store
    ("featurestore.store:Table.create", "before", 1),
    ("featurestore.store:Table.create", "after", 1),
    ("featurestore.storage.table:lance.write_dataset", "before", 2),
    ("featurestore.header:write_sealed", "before", 1),
    ("featurestore.header:write_sealed", "after", 1),
]


def bundles_repeated(folder: Path, name: str) -> None:
    """Beam runs every bundle twice."""
    job = JOBS[name](folder)
    run(replace(job, command=[*job.command, "--", "--direct_runner_bundle_repeat=2"]))
    check(job)


def at_once(folder: Path, names: Sequence[str], delay: float) -> None:
    """Two runs over one store: of one corpus or of two. Each ends, or says that the store is locked."""
    jobs = [JOBS[name](folder) for name in names]
    with child(jobs[0], ["--wait"]) as first, child(jobs[1], ["--wait"]) as second:
        for process in (first, second):
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            time.sleep(delay)
        ended = [(process.communicate(timeout=PATIENCE)[1], process.returncode) for process in (first, second)]
    for said, returncode in ended:
        expect_end(returncode, said)
    assert 0 in [returncode for _, returncode in ended], f"neither run ended well: {ended}"
    for job, (_, returncode) in zip(jobs, ended, strict=True):
        if returncode:
            run(job)
    both(jobs)


def asleep(folder: Path, point: str, when: str, nth: int, lock: bool) -> None:
    """A run is stopped at a point, another tries to finish the work, the first one is woken."""
    job = JOBS["embed"](folder)
    with child(job, ["--at", point, when, str(nth), "SIGSTOP"]) as first:
        wait_until_stopped(first.pid)
        if not lock:
            (job.store / "lock").unlink()
        with child(job) as second:
            _, said = second.communicate(timeout=PATIENCE)
        if lock:
            assert second.returncode == LOCKED, f"the lock was not honoured: {second.returncode}, {said}"
            assert str(first.pid) in said, f"who holds the lock is not said: {said}"
        else:
            assert second.returncode == 0, said
            check_once(job)
        first.send_signal(signal.SIGCONT)
        _, said = first.communicate(timeout=PATIENCE)
    if lock:
        assert first.returncode == 0, said
    else:
        expect_end(first.returncode, said)
        check_once(job)
    embed_here(job)
    check(job)


def replayed_at_once(folder: Path, point: str, when: str, nth: int) -> None:
    """Two processes replay the journal of a dead run at the same time, without the lock."""
    job = JOBS["embed"](folder)
    with child(job, ["--at", point, when, str(nth), "SIGKILL"]) as dead:
        dead.communicate(timeout=PATIENCE)
    with Forked(replay, job.store) as one, Forked(replay, job.store) as other:
        for process in (one, other):
            process.stdout.readline()
        for process in (one, other):
            process.stdin.write("go\n")
        ended = [(process.communicate(timeout=PATIENCE)[1], process.returncode) for process in (one, other)]
    assert 0 in [returncode for _, returncode in ended], f"neither could replay it: {ended}"
    check_once(job)
    embed_here(job)
    check(job)


def replay(path: Path) -> None:
    """Open a store, say so, read a line, and finish what a dead run has left."""
    store = FeatureStore(path)
    print("ready", flush=True)
    sys.stdin.readline()
    store.recover()


def both(jobs: Sequence[Job]) -> None:
    """The store holds what both jobs have brought."""
    contents = {uri: content for job in jobs for uri, content in job.contents.items()}
    labels = {uri: label for job in jobs for uri, label in job.labels.items()}
    check(replace(jobs[0], contents=contents, labels=labels))


def check_once(job: Job) -> None:
    """Nothing is there twice; something may be missing until the next run."""
    sound(job.store)


def expect_end(returncode: int, said: str) -> None:
    """Raise AssertionError unless a run ended well, or with a sentence."""
    assert "Traceback" not in said, said
    assert returncode in (0, 1, LOCKED), f"exit code {returncode}: {said}"
    if returncode:
        (sentence,) = [line for line in said.splitlines() if line.startswith("penult: ")]
        assert returncode == 1 or "is locked by process" in sentence, sentence


def wait_until_stopped(pid: int) -> None:
    """Wait until a process has stopped itself."""
    while (state := Path(f"/proc/{pid}/status").read_text().partition("State:\t")[2][:1]) != "T":
        assert state != "Z", "the run ended before it came to this point"
        time.sleep(0.01)


def faults(seed: int, count: int) -> Faults:
    """Each pair, each point, with and without the lock; ``count`` delays between runs, a tenth of them."""
    for name in ("embed", "embed-again", "embed-tended"):
        yield f"bundles of {name} repeated", partial(bundles_repeated, name=name)
    for point, when, nth in MAKING + POINTS:
        for lock in (True, False):
            name = f"asleep {when} {point} {nth}, {'with' if lock else 'without'} the lock"
            yield name, partial(asleep, point=point, when=when, nth=nth, lock=lock)
    for point, when, nth in POINTS[2:-1]:
        name = f"replayed at once, dead {when} {point} {nth}"
        yield name, partial(replayed_at_once, point=point, when=when, nth=nth)
    rng = random.Random(seed)
    for number in range(max(count // 5, 2)):
        names = ("embed", "embed-other") if number % 2 else ("embed", "embed")
        delay = rng.uniform(0, 0.03 if number % 4 < 2 else 0.5)  # at first both make the store
        yield (
            f"{' and '.join(names)} at once, {number}: {delay:.3f} s apart",
            partial(at_once, names=names, delay=delay),
        )
