"""A disk that is full, broken or read-only: one sentence that says so, nothing half-done, and a rerun completes.

Room runs out on a small tmpfs in a name space of its own, and by a limit on the size of files; other errors are put
by strace in the place of a command's nth call of a kind.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

from faults import Faults, Trial, invariant, needs
from faults.jobs import JOBS, PATIENCE, TESTS, Job, embed_here, run
from faults.kills import check
from featurestore.status import status
from featurestore.store import FeatureStore
from pipelines.predict import predict

PENULT = [sys.executable, "-m", "faults.child", "--fake"]  # in the folder TESTS
ON_A_HEAD = ("label", "train")  # jobs on a store that holds one
KB = 1024
MAX_BYTES, MOST_FILES = 16 << 20, 2000
DISK = f"size={MAX_BYTES},nr_inodes={MOST_FILES}"
ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EACCES", "EROFS")
EVENLY = 25  # of the calls of a kind, about; the rest at random
CALLS = ("fsync", "rename", "renameat", "link", "linkat", "mkdir", "unlink", "openat")
ADVICE = r"make room|make it writable|give this user|name another|look after|run (this|the same command) again|doctor"


def penult(command: Sequence[str], before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command with the counting engine, by way of other programs where ``before`` names some."""
    where = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [*before, *PENULT, *command],
        cwd=TESTS,
        env=os.environ | {"PYTHONPATH": where},  # nsenter goes to the root folder
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        errors="replace",
    )


# --- what is to hold


def says(done: subprocess.CompletedProcess[str], store: Path) -> None:
    """Raise AssertionError unless a command has ended with one sentence that names a file and says what to do."""
    said = [line for line in done.stderr.splitlines() if line.startswith("penult: ")]
    assert done.returncode == 1 and len(said) == 1, f"ended with {done.returncode}: {done.stderr}"
    assert "Traceback" not in done.stderr and "panicked" not in done.stderr, f"not for people: {done.stderr}"
    assert "/rust/" not in said[0] and re.search(rf"{store.parent}|/beam-pipeline-temp", said[0]), f"which: {said[0]}"
    assert re.search(ADVICE, said[0]), f"does not say what to do: {said[0]}"


def refused(job: Job, before: Sequence[str] = ()) -> bool:
    """Run a job's command on a bad disk; whether it failed, which it has to do with a sentence."""
    done = penult(job.command, before)
    if done.returncode != 0:
        says(done, job.store)
    return done.returncode != 0


def reads(job: Job, store: Path) -> None:
    """Raise AssertionError where the store of a job that has failed, if there is one by now, cannot be read."""
    if not (store / "penult.json").exists():
        return
    opened = FeatureStore(store)
    last = json.loads((store / "penult.json").read_bytes())["tables"].get("catalog.lance", {"version": None})
    seen = opened.catalog.read(["uri"], "status = 'ok'", last["version"])  # a commit may have died since
    assert status(opened)["catalog"]["ok"] == len(seen)
    if job.name in ON_A_HEAD:
        (answer,) = predict([_picture(job)], store)
        assert answer.label, answer


def ends_well(job: Job) -> None:
    """Raise AssertionError unless the store agrees with itself, and the job's rerun leaves what it should."""
    if (job.store / "penult.json").exists():
        invariant.sound(job.store)
    if job.command[0] == "embed":
        embed_here(job)
    else:
        run(job)
    check(job)


def _picture(job: Job) -> str:
    return next(uri for uri, content in job.contents.items() if content != "empty")


# --- a disk that is full


def full(folder: Path, name: str, room: int, files: int) -> None:
    """A command on a disk with so many bytes and files left, and then where there is room."""
    disk = folder / "disk"
    disk.mkdir()
    job = JOBS[name](disk)
    with small_disk(disk) as (inside, seen):
        leave(seen, room, files)
        refused(job, inside)
        reads(job, seen / "store")
        shutil.rmtree(job.store, ignore_errors=True)
        if (seen / "store").exists():
            shutil.copytree(seen / "store", job.store)
    ends_well(job)


@contextmanager
def small_disk(folder: Path) -> Iterator[tuple[list[str], Path]]:
    """A tmpfs over a folder, with what the folder held, in a name space of its own.

    Yields:
        The words that run a program in there, and the path at which the disk is seen from here.

    Raises:
        SkipTest: this user may not mount anything.
    """
    needs("unshare")
    with subprocess.Popen(
        ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o {DISK} tmpfs {folder} && echo ready && exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        try:
            if holder.stdout.readline() != "ready\n":
                raise unittest.SkipTest("this user may not mount a tmpfs, so that no disk can be full")
            seen = Path(f"/proc/{holder.pid}/root{folder}")
            shutil.copytree(folder, seen, dirs_exist_ok=True)
            yield ["nsenter", "--preserve-credentials", "-U", "-m", "-t", str(holder.pid)], seen
        finally:
            holder.stdin.close()


def leave(disk: Path, room: int, files: int) -> None:
    """Fill a disk with ballast until so many bytes and files are left."""
    (disk / "ballast").mkdir()
    for number in range(os.statvfs(disk).f_ffree - files - 1):
        (disk / "ballast" / f"{number}").touch()
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with (disk / "ballast" / "bytes").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - room))


def limited(folder: Path, name: str, size: int) -> None:
    """No file may grow above a size: the write up to it is short, the next one fails."""
    needs("prlimit")
    job = JOBS[name](folder)
    refused(job, ["prlimit", f"--fsize={size}"])
    reads(job, job.store)
    ends_well(job)


# --- a disk that fails


def injected(folder: Path, name: str, call: str, error: str, nth: int) -> None:
    """The nth call of a kind fails in the main thread, and in any other thread that comes so far."""
    job = JOBS[name](folder)
    refused(job, [*strace(), "-e", f"inject={call}:error={error}:when={nth}"])
    reads(job, job.store)
    ends_well(job)


def interrupted(folder: Path, name: str) -> None:
    """Every other flush ends early with EINTR: it is made again, and nobody notices."""
    job = JOBS[name](folder)
    done = penult(job.command, [*strace(), "-e", "inject=fsync:error=EINTR:when=1+2"])
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr}"
    check(job)


def manifest_fails(folder: Path, name: str, table: str, call: str, error: str) -> None:
    """The next manifest of a table cannot be written; what is only interrupted is done again."""
    job = JOBS[name](folder)
    (path,) = job.store.glob(f"{table}.lance/_versions")
    last = min(int(manifest.stem) for manifest in path.glob("*.manifest"))
    files = [word for suffix in ("", "#1") for word in ("-P", f"{path}/{last - 1}.manifest{suffix}")]
    when = "1" if error == "EINTR" else "1+"
    failed = refused(job, [*strace(), *files, "-e", f"inject={call}:error={error}:when={when}"])
    assert failed == (error != "EINTR"), "it was not noticed" if error != "EINTR" else "it was not made again"
    reads(job, job.store)
    ends_well(job)


def unreadable(folder: Path, path: str, call: str, error: str) -> None:
    """One file of a store cannot be read: whoever needs it says so, and nobody serves less."""
    job = JOBS["label"](folder)
    file = min(job.store.glob(path))  # of manifests the latest
    before = [*strace(), "-P", str(file), "-e", f"inject={call}:error={error}:when=1+"]
    commands = [[*command, "--store", str(job.store), "--json"] for command in (["status"], ["predict", _picture(job)])]
    for command in commands:
        done, right = penult(command, before), penult(command)
        assert right.returncode == 0, right.stderr
        if done.returncode:
            says(done, job.store)
        else:
            assert done.stdout == right.stdout, f"{command[0]} answers {done.stdout} in place of {right.stdout}"
    refused(job, before)
    ends_well(job)


def strace() -> list[str]:
    """strace, quiet; what it is to put in the place of which calls follows.

    Raises:
        SkipTest: it is missing, or may not trace.
    """
    needs("strace")
    _may_trace()
    return ["strace", "-f", "-o", "/dev/null", "-e", "signal=none"]


@cache
def _may_trace() -> None:
    done = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True)
    if done.returncode:
        raise unittest.SkipTest(f"strace may not trace here: {done.stderr}")


@cache
def calls(name: str) -> dict[str, list[int]]:
    """Which calls of a kind may fail: all that any thread makes; of openat those of the main thread in the store."""
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile("r") as log:
        job = JOBS[name](Path(folder))
        command = ["strace", "-f", "-o", log.name, "-e", f"trace={','.join(CALLS)}", "-e", "signal=none"]
        done = penult(job.command, command)
        assert done.returncode == 0, done.stderr
        threads: Counter[tuple[str, str]] = Counter()
        main, inside = "", []
        for line in log:
            thread, _, rest = line.partition(" ")
            call = re.match(r" *(\w+)\(", rest)
            if call is None:
                continue
            main = main or thread
            threads[thread, call[1]] += 1
            if call[1] == "openat" and thread == main and str(job.store) in rest:
                inside.append(threads[thread, "openat"])
    found = {kind: list(range(1, 1 + max(n for (_, k), n in threads.items() if k == kind))) for _, kind in threads}
    return found | {"openat": inside}


# --- a disk that is read-only


def read_only(folder: Path, name: str, how: str) -> None:
    """A store that may be read and not written: by the modes of its files, or of the disk."""
    job = JOBS[name](folder)
    with LOCKS[how](job.store) as before:
        assert refused(job, before), "it has written to a store that is read-only"
        for command in ["status"], ["predict", _picture(job)]:
            done = penult([*command, "--store", str(job.store)], before)
            assert done.returncode == 0, f"{command[0]} ended with {done.returncode}: {done.stderr}"
    ends_well(job)


def closed(folder: Path, name: str) -> None:
    """A store whose folder nobody may enter."""
    job = JOBS[name](folder)
    with _modes(job.store, 0, [job.store]) as before:
        for command in (job.command, ["status", "--store", str(job.store)]):
            done = penult(command, before)
            assert done.returncode in (1, 2) and "Traceback" not in done.stderr, f"{command[0]}: {done.stderr}"
            assert str(job.store) in done.stderr, f"{command[0]} names no folder: {done.stderr}"
    ends_well(job)


@contextmanager
def _modes(store: Path, mode: int, paths: Sequence[Path]) -> Iterator[list[str]]:
    """Within, paths have this mode; yield the words that run a program which heeds it, as the superuser does not."""
    before = []
    if os.geteuid() == 0:
        needs("setpriv")
        before = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    modes = {path: path.stat().st_mode for path in paths}
    try:
        for path, was in modes.items():
            path.chmod(was & mode)
        yield before
    finally:
        for path, was in modes.items():
            path.chmod(was)


@contextmanager
def _by_modes(store: Path) -> Iterator[list[str]]:
    with _modes(store, ~0o222, [*store.rglob("*"), store]) as before:
        yield before


@contextmanager
def _by_mount(store: Path) -> Iterator[list[str]]:
    needs("unshare")
    mount = f"mount --bind {store} {store} && mount -o remount,bind,ro {store}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        raise unittest.SkipTest("this user may not mount a folder read-only")
    yield ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh"]


LOCKS = {"modes": _by_modes, "mount": _by_mount}


# --- the faults


def faults(seed: int, count: int) -> Faults:
    """Disks of many sizes, failures of each call, stores that may not be written, and ``count`` of them at random."""
    choose = random.Random(seed)
    for name, rooms in ROOMS.items():
        for room in rooms:
            yield f"{name}, {room} kB left", partial(full, name=name, room=room * KB, files=MOST_FILES)
    for name, most in FILES.items():
        for files in range(0, most, 2):
            yield f"{name}, {files} files left", partial(full, name=name, room=MAX_BYTES, files=files)
    for name, size in itertools.product(COMMANDS, SIZES):
        yield f"{name}, no file above {size} bytes", partial(limited, name=name, size=size)
    for name, how in itertools.product(ON_A_HEAD, LOCKS):
        yield f"{name}, read-only by {how}", partial(read_only, name=name, how=how)
    for name in ON_A_HEAD:
        yield f"{name}, closed", partial(closed, name=name)
    for name in COMMANDS:
        yield f"{name}, interrupted calls", partial(interrupted, name=name)
    for table, (call, error) in itertools.product(("catalog", "labels", "features/*"), MANIFEST_ERRORS):
        trial = partial(manifest_fails, name="embed-again", table=table, call=call, error=error)
        yield f"{call} of the manifest of {table}: {error}", trial
    for path, (call, error) in itertools.product(FILES_READ, READ_ERRORS):
        yield f"{call} of {path}: {error}", partial(unreadable, path=path, call=call, error=error)
    try:
        strace()
    except unittest.SkipTest:
        return
    every = {(name, call): numbers for name in COMMANDS for call, numbers in calls(name).items()}
    for (name, call), numbers in every.items():
        for nth in numbers[:: 1 + len(numbers) // EVENLY]:
            yield _injected(name, call, choose.choice(ERRORS), nth)
    for name, call in choose.choices(list(every), k=count):
        yield _injected(name, call, choose.choice(ERRORS), choose.choice(every[name, call]))


def _injected(name: str, call: str, error: str, nth: int) -> tuple[str, Trial]:
    return f"{name}, {call} {nth}: {error}", partial(injected, name=name, call=call, error=error, nth=nth)


COMMANDS = ("embed", "embed-again", "label", "train")
ROOMS = {  # kB: from none to what the command needs
    "embed": range(16, 260, 4),
    "embed-again": range(0, 200, 8),
    "embed-tended": range(0, 160, 8),
    "label": range(0, 60, 4),
    "train": range(0, 400, 20),
}
FILES = {"embed": 90, "embed-again": 70, "embed-tended": 50, "label": 16, "train": 10}  # what the command needs
SIZES = (0, 1, 64, 300, 1000, 1500, 2000, 3000, 4000)
MANIFEST_ERRORS = [
    ("openat", "EIO"),
    ("openat", "EROFS"),
    ("write", "EIO"),
    ("write", "EDQUOT"),
    ("linkat", "EACCES"),
    ("write", "EINTR"),
]
READ_ERRORS = [("openat", "EACCES"), ("openat", "EIO"), ("read,pread64", "EIO")]
FILES_READ = (
    "penult.json",
    "catalog.lance/ledger.json",
    "catalog.lance/_versions/*.manifest",
    "catalog.lance/data/*.lance",
    "labels.lance/data/*.lance",
    "features/*.lance/_versions/*.manifest",
    "features/*.lance/data/*.lance",
    "runs/*-train-*/run.json",
    "runs/*-train-*/head.json",
    "runs/*-train-*/head.npz",
)
