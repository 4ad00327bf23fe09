"""A store in a bucket, and what a network and its servers do: answers that fail, are lost, late or lies; dead servers.

A proxy before a real server does the harm, at the nth request or at all. What is found, lost or twice is judged by the
objects that lie in the bucket afterwards.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import threading
import time
import unittest
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import object_servers
from faults import Faults, invariant, kills
from faults.jobs import PATIENCE
from faults.object_jobs import LATE, OTHERS, Remote, child, own_server, proxied, remote, requests
from faults.twice import LOCKED, expect_end, wait_until_stopped
from faults.warm import Forked
from object_proxy import Harm, Message, Proxy

JOBS = ("embed", "embed-again", "label", "train", "compare", "predict", "promote", "gc", "doctor", "copy")
SMALL = ("promote", "label")  # each of their requests is struck in turn
ONCE = {
    "500": Harm(500, "InternalError"),
    "503": Harm(503, "SlowDown"),
    "409": Harm(409, "ConditionalRequestConflict"),
    "412": Harm(412, "PreconditionFailed"),
    "cut": Harm(),
    "cut after it": Harm(after=True),
    "500 after it": Harm(500, "InternalError", after=True),
    "half an answer": Harm(after=True, half=True),
}
FOR_EVER = ("500", "503", "cut", "cut after it")
EXPIRED = (Harm(403, "ExpiredToken"), Harm(400, "ExpiredToken"))
CONDITIONAL = {"409": True, "412": False}  # what kind of request it happens to
MADE_UP = ("412",)  # a sentence will do
LANCES = {("409", "embed"), ("half an answer", "gc")}  # Lance gives up; a sentence: see docs/faults.md
STOPS = [
    ("pipelines.embedding.worker:embed_shard", "before", 3),
    ("featurestore.storage.objects:ObjectStorage.create", "before", 3),
    ("featurestore.storage.objects:ObjectStorage.create", "after", 4),
    ("featurestore.storage.objects:ObjectStorage.confirm", "after", 1),
    ("featurestore.storage.objects:ObjectStorage.confirm", "after", 2),
    ("featurestore.storage.objects:ObjectStorage.confirm", "after", 3),
    ("featurestore.storage.versions:lance.LanceDataset.commit", "before", 1),
    ("featurestore.storage.versions:lance.LanceDataset.commit", "after", 1),
    ("featurestore.storage.versions:lance.LanceDataset.commit", "before", 2),
    ("featurestore.storage.versions:lance.LanceDataset.commit", "after", 2),
    ("featurestore.storage.versions:lance.LanceDataset.commit", "before", 3),
    ("featurestore.storage.versions:lance.LanceDataset.commit", "after", 3),
    ("featurestore.store:FeatureStore.commit", "before", 1),
    ("featurestore.header:replace_sealed", "before", 1),
    ("featurestore.journal:Staging.remove", "before", 1),
    ("featurestore.runs:RunRecord.write", "before", 1),
]
PAIRS = [("embed", "embed"), ("embed-again", "gc"), ("embed-again", "label"), ("embed", "embed"), ("label", "train")]
LAST = 12  # requests of a copy, which write its header and take its note away
SHORT = 1.0  # seconds of a lease that is to end while its holder sleeps
SETTLED = 0.5  # seconds after which a server has done what it was asked for by a run that was killed


def fits(how: str, request: Message) -> bool:
    """Whether a kind of harm can come to a request."""
    return how not in CONDITIONAL or CONDITIONAL[how] == request.conditional


class Once:
    """Harm to the first request from the nth on that it can come to."""

    def __init__(self, how: str, nth: int) -> None:
        self.how, self.left, self.struck = how, nth, ""

    def __call__(self, request: Message) -> Harm | None:
        self.left -= 1
        if self.left > 0 or self.struck or not fits(self.how, request):
            return None
        self.struck = f"{request.method} {request.path}"
        return ONCE[self.how]


class FirstTries:
    """Harm to the first try of every request."""

    def __init__(self, how: str) -> None:
        self.how, self.struck = how, set[tuple[str, bytes]]()

    def __call__(self, request: Message) -> Harm | None:
        body = b"" if request.conditional else request.body  # Lance tries a commit again with another one
        asked = (request.line, body)  # whatever the range: the rest of half an answer is another one
        if asked in self.struck or not fits(self.how, request):
            return None
        self.struck.add(asked)
        return ONCE[self.how]


class FromThen:
    """The same harm to every request from the nth on."""

    def __init__(self, harm: Harm, nth: int) -> None:
        self.harm, self.left = harm, nth

    def __call__(self, _: Message) -> Harm | None:
        self.left -= 1
        return self.harm if self.left <= 0 else None


def struck(folder: Path, name: str, how: str, nth: int, kind: str = "seaweedfs") -> None:
    """One request goes wrong, and the command does what it does without a word."""
    job, once = remote(name, folder, kind), Once(how, nth)
    code, said = proxied(job, lambda made, _: setattr(made, "harm", once))
    if not once.struck:
        raise unittest.SkipTest("this time there were not so many requests")
    ended(job, folder, code, said, survives=how not in MADE_UP and (how, name) not in LANCES, why=once.struck)


def every_first_try(folder: Path, name: str, how: str, kind: str = "seaweedfs") -> None:
    """Every request goes wrong once."""
    job = remote(name, folder, kind)
    code, said = proxied(job, lambda made, _: setattr(made, "harm", FirstTries(how)))
    ended(job, folder, code, said, survives=(how, name) not in LANCES)


def for_ever(folder: Path, name: str, harm: Harm, nth: int, words: str = "") -> None:
    """From a request on everything goes wrong: a sentence, and the next run goes on."""
    job = remote(name, folder)
    code, said = proxied(job, lambda made, _: setattr(made, "harm", FromThen(harm, nth)))
    assert not code or re.search(words, said), f"not told that {words}: {said}"
    ended(job, folder, code, said)


def killed(folder: Path, name: str, nths: Sequence[int], after: bool) -> None:
    """SIGKILL when the nth request comes, which the server gets or does not; and perhaps the next run, too."""
    job = remote(name, folder)
    for nth in nths:
        arrived = itertools.count(1)

        def prepare(made: Proxy, process: Forked, nth: int = nth, arrived: itertools.count[int] = arrived) -> None:
            def strike(_: Message) -> Harm | None:
                if next(arrived) < nth:
                    return None
                os.kill(process.pid, signal.SIGKILL)
                return Harm(after=after)

            made.harm = strike

        code, said = proxied(job, prepare)
        time.sleep(SETTLED)
        assert code in (0, -signal.SIGKILL, LOCKED), f"{name} ended with {code}: {said}"
        if code == LOCKED:
            assert "is locked by" in said, said
    converges(job, folder)


# --- servers that are late, dead or lie


def late(folder: Path, seconds: float, kind: str) -> None:
    """A listing lacks what was written in the last seconds: nothing is lost, and nothing twice."""
    job, written = remote("embed", folder, kind), dict[str, float]()

    def note(request: Message) -> None:
        if request.method == "PUT":
            written.setdefault(request.path.partition("?")[0].removeprefix(f"/{job.bucket}/"), time.monotonic())

    def edit(request: Message, body: bytes) -> bytes:
        if "list-type=2" not in request.path:
            return body
        new = {key for key, when in written.items() if time.monotonic() - when < seconds}
        return re.sub(
            rb"<Contents>.*?<Key>(.*?)</Key>.*?</Contents>",
            lambda found: b"" if found[1].decode() in new else found[0],
            body,
            flags=re.DOTALL,
        )

    def prepare(made: Proxy, _: Forked) -> None:
        made.harm, made.edit = note, edit  # type: ignore[assignment]

    code, said = proxied(job, prepare)
    ended(job, folder, code, said)


@cache
def mortal() -> object_servers.ObjectServer:
    """A server of this process that may be killed."""
    return own_server("seaweedfs")


def server_killed(folder: Path, name: str, share: float, seconds: float) -> None:
    """The server is killed at a moment of a run, and comes back with what it has on the disk."""
    running = mortal()
    job = remote(name, folder, running=running)

    def prepare(made: Proxy, _: Forked) -> None:
        nth, arrived, back = max(1, round(share * requests(name))), itertools.count(1), threading.Event()

        def strike(_: Message) -> None:
            if next(arrived) == nth:
                running.kill()
                threading.Thread(target=lambda: (time.sleep(seconds), running.start(), back.set())).start()

        made.harm, backs[:] = strike, [back]

    backs: list[threading.Event] = []
    code, said = proxied(job, prepare)
    assert backs[0].wait(PATIENCE), "the server did not come back"
    ended(job, folder, code, said)


def lying(folder: Path, name: str, dropped: Sequence[str]) -> None:
    """A server that does not honour conditions is refused before anything is written."""
    job = remote(name, folder, "moto")
    before = job.keys()
    code, said = proxied(job, lambda made, _: setattr(made, "dropped", frozenset(dropped)))
    assert code == 1 and "does not honour conditional writes" in said, f"exit code {code}: {said}"
    expect_end(code, said)
    assert job.keys() == before, f"it was written to: {set(job.keys()) ^ set(before)}"


# --- two runs, and holders of the lock that sleep


def at_once(folder: Path, names: Sequence[str], delay: float) -> None:
    """Two commands over one store: each ends well, or says that it is locked; both are done once each has been run."""
    first, second = pair(names, folder)
    with child(first, LATE, ["--wait"]) as one, child(second, LATE, ["--wait"]) as two:
        for process in (one, two):
            process.stdin.write("go\n")
            process.stdin.flush()
            time.sleep(delay)
        ends = [(process.communicate(timeout=PATIENCE)[1], process.returncode) for process in (one, two)]
    for said, code in ends:
        assert "Traceback" not in said and code in (0, LOCKED), f"exit code {code}: {said}"
        assert not code or re.search("is locked by|has lost the lock", said), said
    assert 0 in [code for _, code in ends], f"neither ended well: {ends}"
    for job, (_, code) in zip((first, second), ends, strict=True):
        if code:
            job.again()
    second.check(folder)


def pair(names: Sequence[str], folder: Path) -> tuple[Remote, Remote]:
    """Two jobs over one store; the second one says what it is to hold in the end."""
    first = remote(names[0], folder)
    if names[1] == names[0]:
        return first, first
    if names[1] == "label":
        labels = dict.fromkeys(sorted(first.job.labels)[:3], "z")
        (folder / "labels.csv").write_text("\n".join(["uri,label", *(f"{uri},z" for uri in labels)]))
        both = replace(first.job, name="label", labels={**first.job.labels, **labels})
        return first, replace(first, job=both, command=("label", str(folder / "labels.csv"), "--store", first.uri))
    words = {"gc": ("gc", "--older-than", "0s"), "train": ("train",)}[names[1]]
    return first, replace(first, job=replace(first.job, name=names[1]), command=(*words, "--store", first.uri))


def asleep(folder: Path, point: str, when: str, nth: int) -> None:
    """A run is stopped past the end of its lease, another takes over; woken, the first one commits nothing."""
    job = remote("embed", folder)
    with child(job, SHORT, ["--at", point, when, str(nth), "SIGSTOP"]) as first:
        wait_until_stopped(first.pid)
        with child(job, SHORT) as second:
            _, said = second.communicate(timeout=PATIENCE)
        assert second.returncode == 0, f"the lock of one who sleeps did not end: {second.returncode}, {said}"
        before = versions(job.sound(folder))
        first.send_signal(signal.SIGCONT)
        _, said = first.communicate(timeout=PATIENCE)
    expect_lost(first.returncode, said)
    assert versions(job.sound(folder)) == before, "one who had lost the lock has committed"
    result, images = job.here()
    assert result.embedded == images == 0, f"embedded twice: {result}"
    job.check(folder)


def expect_lost(code: int | None, said: str) -> None:
    """Raise AssertionError unless a run ended as one does that has lost its lock."""
    assert code in (1, LOCKED) and "Traceback" not in said, f"exit code {code}: {said}"
    assert re.search("has lost the lock|is gone: another run", said), said


def versions(store: Path) -> dict[str, int]:
    """The newest version of each table."""
    found = [*invariant.tables(store), *invariant.tables(store / "features")]
    return {table.stem: len(list((table / "_versions").glob("*.manifest"))) for table in found}


# --- how a command may end, and what then holds


def ended(job: Remote, folder: Path, code: int, said: str, survives: bool = False, why: str = "") -> None:
    """A command has ended well, where it ``survives``, or with one sentence; a rerun does what is left, once."""
    assert "Traceback" not in said and "panicked" not in said, f"{why}: exit code {code}: {said}"
    assert code == 0 or (code in (1, LOCKED) and not survives), f"{why}: exit code {code}: {said}"
    sentences = [line for line in said.splitlines() if line.startswith("penult: ")]
    assert len(sentences) == bool(code), f"{why}: exit code {code}: {said}"
    converges(job, folder, done=not code)


def converges(job: Remote, folder: Path, done: bool = False) -> None:
    """Run again: what is left is done, nothing is there twice, and the store holds what it should."""
    if job.job.name.startswith("embed"):
        left = 0 if done else job.job.new + job.job.before - kills.embedded(job.sound(folder))
        result, images = job.here()
        assert result.embedded == images == left, f"{left} contents were left, the engine was given {images}: {result}"
        again, images = (result, images) if done else job.here()
        assert (again.embedded, images, again.recovered, again.labels_changed) == (0, 0, [], 0), f"not done: {again}"
    elif job.job.name == "copy" and {"penult.json", "copy.json"} & set(job.keys()) == {"penult.json"}:
        pass  # killed when all was done: another copy is refused
    elif not done:
        if job.job.name not in OTHERS:
            job.sound(folder)
        job.again()
    if job.job.name == "doctor":  # what failed comes back with the next embed run
        result, images = job.here()
        assert result.embedded == images == 0, f"doctor has left {result.embedded} images: {result}"
    job.check(folder)
    if job.job.name == "copy":
        job.equals(folder)


# --- the list


def faults(seed: int, count: int) -> Faults:
    """Each request of small jobs in turn, first tries of all, sleepers, lags, lies; ``count`` random faults."""
    for name in JOBS:
        for how in ("500", "503", "409", "cut", "cut after it", "500 after it", "half an answer"):
            yield f"{name}: each first try {how}", partial(every_first_try, name=name, how=how)
    for name in SMALL:
        for nth in range(1, requests(name) + 1):
            once, ever = list(ONCE)[(nth + seed) % len(ONCE)], FOR_EVER[(nth + seed) % len(FOR_EVER)]
            yield f"{name}: {once} at request {nth}", partial(struck, name=name, how=once, nth=nth)
            yield f"{name}: {ever} from request {nth}", partial(for_ever, name=name, harm=ONCE[ever], nth=nth)
            yield f"{name}: killed at request {nth}", partial(killed, name=name, nths=[nth], after=nth % 2 == 0)
    for nth in range(requests("copy") - LAST, requests("copy") + 1):
        yield f"copy: killed at request {nth}", partial(killed, name="copy", nths=[nth], after=True)
    for point, when, nth in STOPS:
        yield f"asleep {when} {point} {nth}", partial(asleep, point=point, when=when, nth=nth)
    for kind in ("seaweedfs", "moto"):
        for seconds in (0.2, 1.0, 3.0, 1e9):
            yield f"listings {seconds:g} s late, {kind}", partial(late, seconds=seconds, kind=kind)
    for name in ("embed", "label", "promote", "gc", "copy"):  # train takes no lock
        for dropped in (("if-none-match", "if-match"), ("if-match",)):
            yield f"{name}: the server ignores {dropped}", partial(lying, name=name, dropped=dropped)
    yield from random_faults(random.Random(seed), count)


def random_faults(rng: random.Random, count: int) -> Faults:
    """At random requests, of all jobs."""

    def anywhere(name: str) -> int:
        return rng.randint(1, requests(name))

    for number in range(count):
        name, kind = rng.choice(JOBS), ("seaweedfs", "seaweedfs", "moto")[number % 3]
        match ("once", "killed", "ever", "once", "killed", "server", "once", "killed", "expired", "two")[number % 10]:
            case "once":
                nth, how = anywhere(name), rng.choice(list(ONCE))
                trial = partial(struck, name=name, how=how, nth=nth, kind=kind)
                yield f"{number}, {name}: {how} at request {nth}, {kind}", trial
            case "ever":
                nth, how = anywhere(name), rng.choice(FOR_EVER)
                yield (
                    f"{number}, {name}: {how} from request {nth}",
                    partial(for_ever, name=name, harm=ONCE[how], nth=nth),
                )
            case "killed":
                nths, after = [anywhere(name) for _ in range(rng.randint(1, 2))], rng.random() < 0.5
                trial = partial(killed, name=name, nths=nths, after=after)
                yield f"{number}, {name}: killed at requests {nths}, {'after' if after else 'before'}", trial
            case "server":
                share, seconds = rng.random(), rng.uniform(0, 1)
                trial = partial(server_killed, name=name, share=share, seconds=seconds)
                yield f"{number}, {name}: the server killed at {share:.2f}, back after {seconds:.1f} s", trial
            case "expired":
                nth, harm = anywhere(name), rng.choice(EXPIRED)
                trial = partial(for_ever, name=name, harm=harm, nth=nth, words="have expired: get new ones")
                yield f"{number}, {name}: credentials expired at request {nth}, {harm.status}", trial
            case "two":
                names, delay = rng.choice(PAIRS), rng.uniform(0, 1.5)
                yield (
                    f"{number}, {' and '.join(names)} at once, {delay:.2f} s apart",
                    partial(at_once, names=names, delay=delay),
                )
