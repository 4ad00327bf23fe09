"""SIGKILL anywhere, SIGTERM and Ctrl-C anywhere: nothing is lost, nothing is there twice, a rerun completes.

A kill comes at a named point, before each single call that changes the disk (``shim.c``), or at a random moment.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from faults import Faults, invariant, needs
from faults.jobs import JOBS, PATIENCE, SHARD, Job, child, embed_here, run, vectors
from faults.warm import counting, shim
from featurestore.status import status
from featurestore.store import FeatureStore
from pipelines.maintenance import verify

SECONDS_TO_END = 15  # after a signal, on a busy machine
SENTENCE = "penult: Interrupted; what was finished is kept, the same command goes on from there."
EMBEDS = ("embed", "embed-again", "embed-tended")
OTHERS = ("label", "train", "compare", "gc")
MOVES = ("promote", "rollback")  # of an alias
STOPPED = ("embed", "label", "train", "compare", "predict")

POINTS = [
    ("pipelines.embedding.worker:embed_shard", 1),
    ("featurestore.storage.table:write_fragments", 3),  # of the features: data written, not flushed
    ("featurestore.storage.table:Table.stage", 3),
    ("featurestore.storage.local:os.link", 1),  # the journal's entry
    ("featurestore.storage.local:os.link", 3),
    ("featurestore.store:FeatureStore.commit", 1),
    ("featurestore.storage.table:lance.LanceDataset.commit", 1),  # features; after it: landed, not acknowledged
    ("featurestore.storage.table:lance.LanceDataset.commit", 2),  # labels
    ("featurestore.storage.table:lance.LanceDataset.commit", 3),  # catalog
    ("featurestore.storage.table:Table.commit", 1),
    ("featurestore.storage.table:Table.commit", 2),
    ("featurestore.storage.table:Table.commit", 3),
    ("featurestore.header:replace_sealed", 1),  # penult.json
    ("featurestore.journal:Staging.remove", 1),
    ("featurestore.runs:RunRecord.write", 1),
]
FINETUNE_POINTS = [
    ("pipelines.finetuning.checkpoint:save", 1),
    ("pipelines.finetuning.checkpoint:save", 2),
    ("pipelines.finetuning.finetune:_embed", 1),
    ("pipelines.finetuning.finetune:keep", 1),
    ("featurestore.runs:RunRecord.write", 2),
]
MOVE_POINTS = [
    ("pipelines.stored_heads:head_of", 1),  # the head's files are read
    ("featurestore.aliases:replace_sealed", 1),
    ("featurestore.storage.local:LocalStorage.flush", 1),  # of the new file
    ("featurestore.storage.local:Path.replace", 1),  # after it: landed, not flushed
]

# --- how it is killed


@dataclass(frozen=True)
class AtPoint:
    """When a function is called for the nth time."""

    point: str
    when: str
    nth: int = 1


@dataclass(frozen=True)
class AtCall:
    """Before the nth call that changes the disk, or in the middle of it."""

    nth: int
    half: bool = False


@dataclass(frozen=True)
class AtMoment:
    """After a share of the time that the whole command takes."""

    share: float


Kill = AtPoint | AtCall | AtMoment


def kill(how: Kill, job: Job) -> bool:
    """Run a job's command, killed unless it ends before; whether it was killed."""
    at = []
    if isinstance(how, AtPoint):
        at = ["--at", how.point, how.when, str(how.nth), "SIGKILL"]
    if isinstance(how, AtCall):
        needs("cc")
        at = ["--call", str(how.nth), *(["--half"] if how.half else [])]
    with child(job, at) as process:
        if isinstance(how, AtMoment):
            time.sleep(how.share * duration(job.name))
            process.kill()
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode in (0, -signal.SIGKILL), f"{job.name} ended with {process.returncode}: {said}"
    killed = process.returncode == -signal.SIGKILL
    assert killed or not isinstance(how, AtPoint), f"{how} did not happen: {said}"
    return killed


@cache
def duration(name: str) -> float:
    """Seconds that a job takes after its imports, once its files have been read before."""
    took = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder, child(JOBS[name](Path(folder))) as process:
            began = time.monotonic()
            process.communicate(timeout=PATIENCE)
            took.append(time.monotonic() - began)
    return min(took)


def calls(name: str) -> int:
    """How many calls that change the disk a job makes, about; 1 where they cannot be counted."""
    if shim() is None:
        return 1
    with tempfile.TemporaryDirectory() as folder:
        job, count = JOBS[name](Path(folder)), Path(folder) / "count"
        with child(job, environment=counting(count)) as process:
            _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
        return int(count.read_text())


# --- the trials


def embed_killed(folder: Path, name: str, kills: Sequence[Kill]) -> None:
    """Kill an embed run, and perhaps the run after it; the next one completes and embeds nothing twice."""
    job = struck(folder, name, kills)
    lost = job.new + job.before - embedded(job.store)
    result, images = embed_here(job)
    assert result.embedded == images == lost, f"{lost} contents were left, the engine was given {images}: {result}"
    check(job)
    again, images = embed_here(job)
    assert (again.embedded, images, again.recovered, again.labels_changed) == (0, 0, [], 0), f"not done: {again}"
    check(job)


def command_killed(folder: Path, name: str, kills: Sequence[Kill]) -> None:
    """Kill another command; run again, it does what it does, and no kept outcome is fitted again."""
    job = struck(folder, name, kills)
    outcomes = whole_outcomes(job.store)
    epochs = epochs_done(job.store)
    line, said = run(job)
    told = json.loads(line)
    check(job)
    now = whole_outcomes(job.store)
    assert outcomes.items() <= now.items(), "outcomes that were kept have been made again"
    if name == "compare":
        fits = len(told["leaderboard"]) + len(told["learning_curve"]["points"]) - 1  # the last point is the winner
        assert len(now) == fits, f"{len(now)} outcomes of {fits} are kept"
    if name == "finetune":
        left = 0 if "This was done before" in said else told["epochs"] - epochs
        assert len(re.findall("^Epoch", said, re.MULTILINE)) == left, f"{epochs} epochs were kept: {said}"
        assert len(told["history"]) == told["epochs"], told["history"]
        assert not list((job.store / "finetune").iterdir()), "its checkpoint is still there"
    if name == "gc":
        rest = [*invariant.orphans(job.store), *unfinished_runs(job.store)]
        assert not rest, f"gc has left {rest}"


def move_killed(folder: Path, name: str, kills: Sequence[Kill]) -> None:
    """Kill what moves the champion: it has moved or it has not, and what it was before is as it was."""
    job = struck(folder, name, kills)
    now = invariant.champions(job.store)
    possible = [job.moves + job.steps[:count] for count in range(len(kills) + 1)]
    assert now in possible, f"the champion's history is {now}, and none of {possible}"
    run(job)
    wanted = job.moves + job.steps[: len(now) - len(job.moves) + 1]
    assert invariant.champions(job.store) == wanted, f"{invariant.champions(job.store)} in place of {wanted}"
    check(job)


def struck(folder: Path, name: str, kills: Sequence[Kill]) -> Job:
    """A job whose command was killed as often as said; after each kill its store agrees with itself."""
    job, first = JOBS[name](folder), kills[0]
    while not kill(first, job):  # it ended before
        if not isinstance(first, AtMoment):
            raise unittest.SkipTest("this time there were not so many calls")
        shutil.rmtree(job.store)
        job, first = JOBS[name](folder), AtMoment(0.8 * first.share)
    sound(job.store)
    for how in kills[1:]:
        kill(how, job)
        sound(job.store)
    return job


def stopped(folder: Path, name: str, number: int, share: float, seconds: float, second: float | None) -> None:
    """Stop a command by a signal, after a share of its time or some seconds, and perhaps again; it says a sentence."""
    allow_interrupts()
    moment = share * whole_seconds(name) if share else seconds
    while True:
        job = JOBS[name](folder)
        heeding, returncode, said = signalled(job, number, moment, second)
        if heeding:
            break
        assert returncode == 0 or moment < 2, f"exit code {returncode}: {said}"
        shutil.rmtree(job.store, ignore_errors=True)
        moment = 0.8 * moment if returncode == 0 else moment + 0.02  # it had ended, or Python itself was starting
    expect_sentence(returncode, said, number)
    sound(job.store)
    if name == "embed-real":
        embed_here(job)
    else:
        run(job)
    check(job)


def signalled(job: Job, number: int, moment: float, second: float | None) -> tuple[bool, int, str]:
    """Run the real command and signal it: whether it was running and not Python alone, exit code, stderr."""
    command = [sys.executable, "-m", "pipelines", *job.command]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            time.sleep(moment)
            heeds = heeding(process.pid)
            began = time.monotonic()
            process.send_signal(number)
            if second is not None:
                time.sleep(second)
                process.send_signal(number)
            _, said = process.communicate(timeout=PATIENCE)
            took = time.monotonic() - began
        finally:
            process.kill()
    assert took < SECONDS_TO_END, f"it took {took:.0f} s to end"
    return heeds, process.returncode, said


def stopped_at_a_safe_point(folder: Path, number: int, points: Sequence[Sequence[str]]) -> None:
    """A signal within an embed run commits what was finished at once; a second one ends it there and then."""
    allow_interrupts()
    job = JOBS["embed"](folder)
    at = [word for point in points for word in ("--at", *point, signal.Signals(number).name)]
    with child(job, at) as process:
        _, said = process.communicate(timeout=PATIENCE)
    expect_sentence(process.returncode, said, number)
    assert process.returncode, "nothing was left to do when the signal came"
    if len(points) == 1:
        kept = embedded(job.store)  # shards that are under way may end too, more of them where the watcher has to wait
        assert kept >= 2 * SHARD, f"{kept} images, not the shards that were finished"
        invariant.nothing_pending(job.store)
    sound(job.store)
    embed_here(job)
    check(job)


def expect_sentence(returncode: int, said: str, number: int) -> None:
    """Raise AssertionError unless a process was done already, or ended by a signal as it should."""
    assert "Traceback" not in said, said
    if returncode:
        assert returncode == 128 + number, f"exit code {returncode}: {said}"
        sentences = {line for line in said.splitlines() if line.startswith("penult:")}
        assert sentences == {SENTENCE}, said


def allow_interrupts() -> None:
    """Have the processes started from here not ignore SIGINT, as a shell makes all in the background do."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def heeding(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM: penult's first lines give it one, Python does not."""
    caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()
    return bool(caught) and bool(int(caught[0], 16) >> (signal.SIGTERM - 1) & 1)


@cache
def whole_seconds(name: str) -> float:
    """Seconds that the real command takes, from its start to its end."""
    with tempfile.TemporaryDirectory() as folder:
        job = JOBS[name](Path(folder))
        began = time.monotonic()
        command = [sys.executable, "-m", "pipelines", *job.command]
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    return time.monotonic() - began


# --- what must hold


def sound(store: Path) -> None:
    """The store agrees with itself, penult opens it and finds no damage; before it has a header it is none."""
    if (store / "penult.json").exists():
        invariant.sound(store)
        status(FeatureStore(store))
        assert not (found := verify(store)), f"penult verify takes a kill for damage: {found}"
    for record in (store / "runs").glob("*/run.json"):
        if invariant.sealed(record)["kind"] in ("train", "compare", "finetune"):
            made = {path.name for path in record.parent.iterdir() if path.stat().st_size}
            assert {"head.npz", "head.json", "report.html"} <= made, f"{record.parent} holds {made} only"
    whole_outcomes(store)


def check(job: Job) -> None:
    """The store holds what it should, and its features are those of a run that nothing befell."""
    sound(job.store)
    reference = None if job.engine == "other" else vectors(job.engine)
    tolerance = 0.01 if job.engine == "real" else 0.0  # half floats of a network that sees other batches
    invariant.check(job.store, job.contents, reference, labels=job.labels, former=job.former, tolerance=tolerance)


def embedded(store: Path) -> int:
    """How many contents are there for good: in a table, or in the journal of a run that has not committed."""
    runs = [row["run_id"] for table in invariant.tables(store / "features") for row in invariant.rows_of(table)]
    entries = (store / "staging").glob("*/shards/*.json")
    journal = [json.loads(path.read_bytes())["embedded"] for path in entries if path.parts[-3] not in runs]
    return len(runs) + sum(journal)


def whole_outcomes(store: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each kept outcome of a fit; each is whole."""
    found = {}
    for path in (store / "results").glob("*/*.json"):
        invariant.sealed(path)
        found[path.name] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


def epochs_done(store: Path) -> int:
    """How many epochs the checkpoint of a fine-tuning holds."""
    for path in (store / "finetune").glob("*/checkpoint.npz"):
        with np.load(path) as archive:
            return len(json.loads(str(archive["told"]))["history"])
    return 0


def unfinished_runs(store: Path) -> list[Path]:
    """Folders of runs without a record."""
    return [path for path in (store / "runs").glob("*") if not (path / "run.json").exists()]


# --- the list


def faults(seed: int, count: int) -> Faults:
    """At every point and every call, and at ``count`` random moments of an embed run with its CNN; others by shares."""
    for point, nth in POINTS:
        for when in ("before", "after"):
            how = AtPoint(point, when, nth)
            yield f"embed {when} {point} {nth}", partial(embed_killed, name="embed", kills=[how])
    for point, nth in FINETUNE_POINTS:
        for when in ("before", "after"):
            how = AtPoint(point, when, nth)
            yield f"finetune {when} {point} {nth}", partial(command_killed, name="finetune", kills=[how])
    for name in MOVES:
        yield from move_kills(name)
    for number in (signal.SIGINT, signal.SIGTERM):
        for points in SAFE_POINTS:
            yield f"embed, signal {number} {points}", partial(stopped_at_a_safe_point, number=number, points=points)
    yield from random_kills(random.Random(seed), count)
    yield from random_signals(random.Random(seed + 1), count // 4)
    for name in (*EMBEDS, *OTHERS, *MOVES):
        if name in JOBS:
            for nth in range(1, calls(name) + 1):
                call = AtCall(nth, half=nth % 2 == 0)
                yield f"{name} at call {nth}", partial(trial_of(name), name=name, kills=[call])


def move_kills(name: str) -> Faults:
    """At every point of what moves an alias."""
    for point, nth in MOVE_POINTS:
        for when in ("before", "after"):
            yield f"{name} {when} {point}", partial(move_killed, name=name, kills=[AtPoint(point, when, nth)])


A_SHARD = ("pipelines.embedding.worker:embed_shard", "before", "3")
SAFE_POINTS = [
    [A_SHARD],
    [A_SHARD, ("featurestore.store:FeatureStore.commit", "before", "1")],
    [A_SHARD, ("featurestore.storage.table:Table.commit", "after", "1")],
]


def random_kills(rng: random.Random, count: int) -> Faults:
    """At random moments, every second time twice in a row: ``count`` of an embed run with its CNN, others by shares."""
    shares = {"embed-real": 1, "embed-again": 4, "embed-tended": 4, **dict.fromkeys(OTHERS + MOVES, 10), "finetune": 40}
    for name, share in shares.items():
        for number in range(count // share if name in JOBS else 0):
            kills = [AtMoment(rng.random()) for _ in range(1 + number % 2)]
            yield f"{name} {number} at {kills}", partial(trial_of(name), name=name, kills=kills)


def trial_of(name: str) -> Callable[..., None]:
    if name in MOVES:
        return move_killed
    return embed_killed if name.startswith("embed") else command_killed


def random_signals(rng: random.Random, count: int) -> Faults:
    """SIGINT and SIGTERM at random moments of the real commands, also while they import, also twice in a row."""
    for number in range(count):
        name, signalled = STOPPED[number % len(STOPPED)], (signal.SIGINT, signal.SIGTERM)[number // 2 % 2]
        name = "embed-real" if name == "embed" else name
        early = number % 3 == 0
        second = rng.uniform(0, 0.5) if number % 4 == 3 else None
        share, seconds = (0.0, rng.uniform(0.02, 0.3)) if early else (rng.random(), 0.0)
        yield (
            f"{name} {number}, signal {signalled} at {share:.3f} or {seconds:.3f} s, then {second}",
            partial(stopped, name=name, number=int(signalled), share=share, seconds=seconds, second=second),
        )
