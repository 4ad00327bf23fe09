"""The battery's jobs on stores in buckets of a real server, run through a proxy, checked by what lies there after them.

The independent check reads a copy of the store's objects, which obstore has fetched; each table is also opened in the
bucket itself, and is the same there.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing.util import Finalize
from pathlib import Path, PurePath
from unittest import mock

import lance
import obstore
from obstore.store import S3Store

import object_servers
from faults import hurried, invariant, kills
from faults.jobs import JOBS, PATIENCE, Job, embed_here
from faults.warm import Forked
from featurestore.storage.base import location
from object_proxy import Proxy, proxy
from object_servers import REGION, ObjectServer
from pipelines.embedding.embed import EmbedResult

AT_ONCE = 8  # requests
OTHERS = {"copy": "train", "doctor": "train"}  # jobs that take the store of another one
ROTS = (
    "features/.*/data/",
    "catalog.lance/data/",
    "labels.lance/data/",
    "/_versions/.*manifest",
    "ledger",
    "^penult.json",
)
SOON = 0.3  # seconds after which a run that comes later takes a dead one's lease
LATE = 5.0  # and those after which a run is dead to others: it beats twice a second


@cache
def server(kind: str) -> ObjectServer:
    """The server of this process, which nobody harms."""
    return own_server(kind)


def own_server(kind: str) -> ObjectServer:
    """A server that runs until this process ends."""
    stack = ExitStack()
    running = stack.enter_context(object_servers.SERVERS[kind]())
    Finalize(None, stack.close, exitpriority=0)
    return running


@cache
def bucket(kind: str) -> str:
    return server(kind).make_bucket()


@dataclass(frozen=True)
class Remote:
    """A job whose store lies in a bucket; ``job`` says what it is to hold."""

    job: Job
    server: ObjectServer
    bucket: str
    prefix: str
    command: tuple[str, ...]
    source: str = ""  # what an embed run is to be given, where there is one

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    @property
    def place(self) -> PurePath:
        return location(self.uri)

    def keys(self) -> list[str]:
        """The names of the objects that are there, below the store."""
        found = obstore.list(self.server.store(self.bucket), self.prefix).collect()
        return sorted(one["path"].removeprefix(f"{self.prefix}/") for one in found)

    def mirror(self, folder: Path) -> Path:
        """A copy of what is there."""
        copy, client = Path(tempfile.mkdtemp(dir=folder), "store"), self.server.store(self.bucket)

        def fetch(key: str) -> None:
            path = copy / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(obstore.get(client, f"{self.prefix}/{key}").bytes().to_bytes())

        copy.mkdir()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(fetch, self.keys()))
        for table in [*invariant.tables(copy), *invariant.tables(copy / "features")]:
            here = lance.dataset(table)
            there = lance.dataset(f"{self.uri}/{table.relative_to(copy).as_posix()}", storage_options=self._options())
            assert (here.version, here.count_rows()) == (there.version, there.count_rows()), f"{table}: {there.uri}"
        return copy

    def _options(self) -> dict[str, str]:
        given = {"endpoint": self.server.endpoint, "region": REGION, "allow_http": "true"}
        return given | {"access_key_id": self.server.key, "secret_access_key": self.server.secret}

    def put(self, folder: Path) -> None:
        """Upload a folder as the store."""
        files = [path for path in folder.rglob("*") if path.is_file()]
        upload(self.server.store(self.bucket), {f"{self.prefix}/{p.relative_to(folder).as_posix()}": p for p in files})

    def damage(self) -> None:
        """Flip a byte in the middle of an object, which prefix and chance choose."""
        chance = random.Random(self.prefix)
        pattern = chance.choice(ROTS)
        key = f"{self.prefix}/{chance.choice([key for key in self.keys() if re.search(pattern, key)])}"
        data = bytearray(obstore.get(client := self.server.store(self.bucket), key).bytes().to_bytes())
        data[len(data) // 2] ^= 0xFF
        obstore.put(client, key, bytes(data))

    def sound(self, folder: Path) -> Path:
        """What is there agrees with itself; return a copy of it."""
        copy = self.mirror(folder)
        kills.sound(copy)
        return copy

    def check(self, folder: Path) -> None:
        """The store holds what it should."""
        kills.check(replace(self.job, store=self.mirror(folder)))

    def equals(self, folder: Path) -> None:
        """Raise AssertionError unless what is there is what the job's store on the disk holds."""
        there = [
            {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
            for root in (self.job.store, self.mirror(folder))
        ]
        for files in there:
            for name in [name for name in files if name == "lock" or PurePath(name).match(".*.tmp")]:  # gc takes these
                del files[name]
        different = [name for name in there[0].keys() | there[1].keys() if there[0].get(name) != there[1].get(name)]
        assert not different, f"not the same as in the store: {sorted(different)}"

    def here(self) -> tuple[EmbedResult, int]:
        """Embed in this process, with nobody in between; also, how many images the engine was given."""
        job = replace(self.job, store=self.place, command=["embed", self.source])  # type: ignore[arg-type]
        with environment(self.server.environment), hurried.hurry(SOON):
            return embed_here(job)

    def again(self) -> str:
        """Run the command in a process, with nobody in between; return the JSON that it printed."""
        with child(self, SOON) as process:
            told, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, f"run again, {self.job.name} ended with {process.returncode}: {said}"
        return told.rpartition("\n")[0].rpartition("\n")[2]


def upload(client: S3Store, files: Mapping[str, Path]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda key: obstore.put(client, key, files[key].read_bytes()), files))


def remote(name: str, folder: Path, kind: str = "seaweedfs", running: ObjectServer | None = None) -> Remote:
    """A job with its store in a bucket: of ``faults.jobs``, or one of those that move or mend a store.

    The source of "embed" lies there too.
    """
    job = JOBS[OTHERS.get(name, name)](folder)
    own = running.make_bucket() if running else bucket(kind)
    made = Remote(replace(job, name=name), running or server(kind), own, f"{secrets.token_hex(6)}/store", ())
    if name == "copy":
        return replace(made, command=("copy", str(job.store), made.uri))
    if job.store.exists():
        made.put(job.store)
    if name == "doctor":
        made.damage()
        return replace(made, command=("doctor", "--store", made.uri), source=JOBS["embed"](folder).command[1])
    words = {str(job.store): made.uri}
    if name == "embed":
        corpus, words[job.command[1]] = Path(job.command[1]), f"s3://{own}/corpus"
        job = _moved(made.job, corpus.as_uri(), f"s3://{own}/corpus")
        _upload_once(made.server.store(own), corpus)
    command = tuple(words.get(word, word) for word in job.command)
    return replace(made, job=replace(job, name=name), command=command, source=command[1])


def _moved(job: Job, old: str, new: str) -> Job:
    """The same job, of images at another place."""
    contents = {uri.replace(old, new): content for uri, content in job.contents.items()}
    return replace(job, contents=contents, labels={uri.replace(old, new): label for uri, label in job.labels.items()})


def _upload_once(client: S3Store, corpus: Path) -> None:
    if not obstore.list(client, "corpus").collect():
        upload(client, {f"corpus/{path.relative_to(corpus).as_posix()}": path for path in corpus.glob("*/*")})


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    with mock.patch.dict(os.environ, variables):
        yield


@contextmanager
def child(job: Remote, expiry: float, options: Sequence[str] = (), endpoint: str | None = None) -> Iterator[Forked]:
    """The job's command in a process that is past its imports, past a proxy if an endpoint says so."""
    words = [*(["--fake"] if job.job.engine == "fake" else []), *options, *job.command]
    through = {"AWS_ENDPOINT_URL": endpoint} if endpoint else {}
    with environment(job.server.environment | through):
        process = Forked(hurried.run, expiry, words)
    with process:
        try:
            process.stdout.readline()  # "ready"
            yield process
        finally:
            process.kill()


def proxied(job: Remote, prepare: Callable[[Proxy, Forked], None]) -> tuple[int, str]:
    """Run the job's command through a proxy, prepared once its process is there; exit code and what it said."""
    with proxy(job.server.endpoint) as made, child(job, LATE, ["--wait"], made.endpoint) as process:
        prepare(made, process)
        process.stdin.write("go\n")
        process.stdin.flush()
        _, said = process.communicate(timeout=PATIENCE)
        return process.returncode or 0, said


@cache
def requests(name: str) -> int:
    """How many requests a job makes, about."""
    seen: list[Proxy] = []
    with tempfile.TemporaryDirectory() as folder:
        code, said = proxied(remote(name, Path(folder).resolve()), lambda made, _: seen.append(made))
    assert code == 0, said
    return len(seen[0].requests)
