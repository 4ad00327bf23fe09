"""The commands that faults befall, each with what it works on and what the store is to hold when it is done."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

import faults.child
from conftest import CountingEngine
from faults import invariant, own_folder
from faults.warm import TESTS, Forked
from pipelines.commands import app
from pipelines.embedding import worker
from pipelines.embedding.embed import EmbedResult, embed
from pipelines.options import EmbedOptions

PATIENCE = 300  # seconds that no command of these takes
SHARD = 7
PICTURES = 30


@dataclass(frozen=True)
class Job:
    """A command, and what the store is to hold after it; see ``invariant.check``."""

    name: str
    store: Path
    command: list[str]
    contents: Mapping[str, bytes | str]
    labels: Mapping[str, str]
    former: tuple[str, ...] = ()
    new: int = 0  # contents that an embed run has to embed
    before: int = 0  # and those that the store held
    engine: str = "fake"  # "real": the CNN itself; "other": another one, of which there is no reference
    moves: tuple[str, ...] = ()  # heads that the champion has been
    steps: tuple[str, ...] = ()  # and those that it is by and by, where the command is run again and again

    @property
    def digests(self) -> set[str]:
        """Sha256 in hex of the contents."""
        return {hashlib.sha256(content).hexdigest() for content in self.contents.values() if isinstance(content, bytes)}


# --- to run one


@contextmanager
def child(
    job: Job, options: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str] | Forked]:
    """The job's command in a process that is past its imports; ended if the block ends before it.

    With an environment of its own, which may be one that a program is loaded with, it is none that was forked.
    """
    words = [*(["--fake"] if job.engine == "fake" else []), *options, *job.command]
    with _started(words, environment) if environment else Forked(faults.child.run, words) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()  # "ready"
            yield process
        finally:
            process.kill()


def _started(words: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "faults.child", *words],
        cwd=TESTS,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(job: Job) -> tuple[str, str]:
    """Run a job's command to its end; the last line that it printed, and all that it said."""
    with child(job) as process:
        told, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, f"{job.name} ended with {process.returncode}: {said}"
    return told.rpartition("\n")[0].rpartition("\n")[2], said


def embed_here(job: Job) -> tuple[EmbedResult, int]:
    """Run an embed job in this process; also, how many images the engine was given."""
    options = EmbedOptions(shard_images=SHARD)
    if job.engine == "real":
        result = embed(job.command[1], job.store, options)
        return result, result.embedded
    counting = CountingEngine(batch_size=8)
    worker.engine_for.cache_clear()
    try:
        with mock.patch.object(worker, "open_engine", lambda *_args, **_options: counting):
            return embed(job.command[1], job.store, options), counting.images
    finally:
        worker.engine_for.cache_clear()


@cache
def vectors(engine: str) -> dict[str, np.ndarray]:
    """The features of every image, from a run that nothing befell, by sha256 in hex."""
    folder = own_folder()
    for number in (*range(PICTURES), *(100 + number for number in CHANGED)):
        (folder / "corpus" / "a").mkdir(parents=True, exist_ok=True)
        (folder / "corpus" / "a" / f"{number}.jpg").write_bytes(picture(number))
    embed_here(Job("", folder / "store", ["embed", str(folder / "corpus")], {}, {}, engine=engine))
    return invariant.stored_vectors(folder / "store")


# --- the jobs


def _embed(folder: Path) -> Job:
    """Thirty images in class folders, a copy of one and an empty file, into a new store."""
    corpus = _corpus()
    contents, labels = invariant.folder_contents(corpus)
    expected = {uri: content or "empty" for uri, content in contents.items()}
    return _embedding("embed", corpus, folder / "store", expected, labels, new=PICTURES)


def _embed_other(folder: Path) -> Job:
    """Other images, some of the same contents, into the same store."""
    corpus = _changed() / "pictures"
    contents = {path.as_uri(): path.read_bytes() for path in sorted(corpus.iterdir())}
    return _embedding("embed-other", corpus, folder / "store", contents, {}, new=PICTURES)


def _embed_real(folder: Path) -> Job:
    return replace(_embed(folder), name="embed-real", engine="real")


def _embed_again(folder: Path) -> Job:
    """A manifest that has changed since it was embedded: files that are new, changed or mended, and other labels."""
    template = _changed()
    shutil.copytree(template / "store", folder / "store", dirs_exist_ok=True)
    files = {path.as_uri(): path for path in sorted((template / "pictures").iterdir())}
    contents = {uri: path.read_bytes() for uri, path in files.items()}
    labels = {uri: "abcd"[int(path.stem) % 4] for uri, path in files.items()}
    former = tuple(hashlib.sha256(picture(number)).hexdigest() for number in CHANGED)
    job = _embedding("embed-again", template / "manifest.csv", folder / "store", contents, labels, new=14, before=19)
    return replace(job, former=former)


def _embed_tended(folder: Path) -> Job:
    """A manifest that grew by an image per run: this run's commit has fragments to merge and old versions to drop."""
    template = _grown()
    shutil.copytree(template / "store", folder / "store", dirs_exist_ok=True)
    files = {path.as_uri(): path for path in sorted((template / "pictures").iterdir())}
    contents = {uri: path.read_bytes() for uri, path in files.items()}
    labels = {uri: "abc"[int(path.stem) % 3] for uri, path in files.items()}
    return _embedding("embed-tended", template / "manifest.csv", folder / "store", contents, labels, new=15, before=15)


def _label(folder: Path) -> Job:
    """A file that changes every third label."""
    job = _on_done("label", folder, str(_done("fake") / "labels.csv"), "--json")
    return replace(job, labels={**job.labels, **_relabelled(job.labels)})


def _train(folder: Path) -> Job:
    return _on_done("train", folder, "--json")


def _compare(folder: Path) -> Job:
    return _on_done("compare", folder, "--heads", "logreg,ridge,ncm,knn", "--json")


def _predict(folder: Path) -> Job:
    """An image that the store lacks."""
    return _on_done("predict", folder, str(_done("fake") / "new.jpg"), "--json", engine="real")


def _gc(folder: Path) -> Job:
    """A store with what a killed run, a killed comparison and killed writers have left."""
    job = _on_done("gc", folder, "--older-than", "0s", "--json")
    orphan = next((_done("fake") / "store" / "features").glob("*.lance/data/*.lance"))
    for left in (
        orphan.relative_to(_done("fake") / "store").with_name("0" * 50 + ".lance"),
        Path("runs/20260101T000000000000Z-train-000000/head.npz"),
        Path("results/00/.00.json.1.tmp"),
        Path(".penult.json.1.tmp"),
    ):
        (job.store / left).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(orphan, job.store / left)
        os.utime(job.store / left, (0, 0))
        os.utime((job.store / left).parent, (0, 0))
    return job


def _promote(folder: Path) -> Job:
    """A head that was in use before; run again, it does nothing."""
    first, second, third = _heads_of(_crowned() / "store")
    job = _on_done("promote", folder, second, "--json", template=_crowned())
    return replace(job, moves=(first, second, third, first), steps=(second,))


def _rollback(folder: Path) -> Job:
    """Three heads have been in use, the first one twice; run again, it goes back once more."""
    first, second, third = _heads_of(_crowned() / "store")
    job = _on_done("rollback", folder, "--json", template=_crowned())
    return replace(job, moves=(first, second, third, first), steps=(third, second, first))


def _finetune(folder: Path) -> Job:
    """Two epochs of a small network on scans of digits."""
    template = _digits()
    shutil.copytree(template / "store", folder / "store", dirs_exist_ok=True)
    contents, labels = invariant.folder_contents(template / "corpus")
    options = ["--unfreeze-from", "conv_dw_12", "--epochs", "2", "--batch-size", "16", "--json"]
    command = ["finetune", *options, "--store", str(folder / "store")]
    return Job("finetune", folder / "store", command, contents, labels, engine="other")


JOBS: dict[str, Callable[[Path], Job]] = {
    "embed": _embed,
    "embed-other": _embed_other,
    "embed-real": _embed_real,
    "embed-again": _embed_again,
    "embed-tended": _embed_tended,
    "label": _label,
    "train": _train,
    "compare": _compare,
    "predict": _predict,
    "promote": _promote,
    "rollback": _rollback,
    "finetune": _finetune,
}
if any(command.callback.__name__ == "gc" for command in app.registered_commands if command.callback):
    JOBS["gc"] = _gc


def _embedding(
    name: str,
    source: Path,
    store: Path,
    contents: Mapping[str, bytes | str],
    labels: Mapping[str, str],
    new: int = 0,
    before: int = 0,
) -> Job:
    command = ["embed", str(source), "--store", str(store), "--shard-images", str(SHARD)]
    return Job(name, store, command, contents, labels, new=new, before=before)


def _on_done(name: str, folder: Path, *options: str, engine: str = "fake", template: Path | None = None) -> Job:
    """A command on a store that holds the thirty images and a head, by default nothing else."""
    shutil.copytree((template or _done(engine)) / "store", folder / "store", dirs_exist_ok=True)
    command = [name, *options, "--store", str(folder / "store")]
    return replace(_embed(folder), name=name, command=command, engine=engine)


def _relabelled(labels: Mapping[str, str]) -> dict[str, str]:
    return {
        uri: "abc"["bca".index(label)] for number, (uri, label) in enumerate(sorted(labels.items())) if number % 3 == 0
    }


# --- what they work on, made once per process and not changed after that

CHANGED = (3, 4, 5)


def picture(number: int) -> bytes:
    """A JPEG file of a part of a photograph."""
    photographs = _photographs()
    x, y = 37 * number % 480, 53 * number % 300
    file = io.BytesIO()
    Image.fromarray(photographs[number % 2][y : y + 96, x : x + 128]).save(file, "jpeg", quality=90)
    return file.getvalue()


@cache
def _photographs() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    return list(load_sample_images().images)


@cache
def _corpus() -> Path:
    corpus = own_folder() / "corpus"
    for number in range(PICTURES):
        (corpus / "abc"[number % 3]).mkdir(parents=True, exist_ok=True)
        (corpus / "abc"[number % 3] / f"{number:02}.jpg").write_bytes(picture(number))
    shutil.copy(corpus / "a" / "00.jpg", corpus / "b" / "copy.jpg")
    (corpus / "c" / "empty.jpg").touch()
    return corpus


@cache
def _changed() -> Path:
    folder = own_folder()
    _write(folder, range(20), "abc")
    (folder / "pictures" / "07.jpg").write_bytes(b"")
    embed_here(_embedding("", folder / "manifest.csv", folder / "store", {}, {}))
    _write(folder, range(PICTURES), "abcd")
    for number in CHANGED:
        (folder / "pictures" / f"{number:02}.jpg").write_bytes(picture(100 + number))
    return folder


@cache
def _grown() -> Path:
    folder = own_folder()
    for count in range(1, 16):  # one less than are merged
        _write(folder, range(count), "abc")
        embed_here(_embedding("", folder / "manifest.csv", folder / "store", {}, {}))
    _write(folder, range(PICTURES), "abc")
    return folder


def _write(folder: Path, numbers: range, classes: str) -> None:
    """Images that are not there yet, and a manifest of them all."""
    (folder / "pictures").mkdir(exist_ok=True)
    for number in numbers:
        path = folder / "pictures" / f"{number:02}.jpg"
        if not path.exists() or not path.stat().st_size:
            path.write_bytes(picture(number))
    rows = [f"pictures/{number:02}.jpg,{classes[number % len(classes)]}" for number in numbers]
    (folder / "manifest.csv").write_text("\n".join(["path,label", *rows]))


@cache
def _done(engine: str) -> Path:
    folder = own_folder()
    job = replace(_embed(folder), engine=engine)
    embed_here(job)
    run(replace(job, name="train", command=["train", "--store", str(job.store)]))
    (folder / "new.jpg").write_bytes(picture(50))
    rows = [f"{uri},{label}" for uri, label in _relabelled(job.labels).items()]
    (folder / "labels.csv").write_text("\n".join(["uri,label", *rows]))
    return folder


@cache
def _crowned() -> Path:
    """Three heads, each of which has been the champion, the first one twice."""
    folder = own_folder()
    job = _on_done("train", folder)
    for head in ("ncm", "knn"):
        run(replace(job, command=[*job.command, "--head", head]))
    heads = _heads_of(job.store)
    for head in (*heads, heads[0]):
        run(replace(job, name="promote", command=["promote", head, "--store", str(job.store)]))
    return folder


def _heads_of(store: Path) -> list[str]:
    """Ids of the heads of a store, oldest first."""
    return sorted(path.parent.name for path in store.glob("runs/*/head.json"))


@cache
def _digits() -> Path:
    """A store with the features of a small network with seeded weights, and a head on them."""
    from sklearn.datasets import load_digits

    folder, digits = own_folder(), load_digits(n_class=3)
    for number, (pixels, label) in enumerate(zip(digits.images[:66], digits.target[:66], strict=True)):
        path = folder / "corpus" / str(label) / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.kron(pixels * (255 / 16), np.ones((8, 8))).astype(np.uint8)).save(path)
    made = subprocess.run(
        [sys.executable, "-c", f"import seeded; print(seeded.weights('MobileNet', {str(folder)!r}))"],
        cwd=TESTS,
        capture_output=True,
        check=True,
        text=True,
    )
    weights = made.stdout.splitlines()[-1]
    job = Job("", folder / "store", [], {}, {}, engine="other")
    of_mobilenet = ["--backbone", "MobileNet", "--weights", weights, "--input-size", "64"]
    run(replace(job, command=["embed", str(folder / "corpus"), *of_mobilenet, "--store", str(job.store)]))
    run(replace(job, command=["train", "--store", str(job.store)]))
    return folder
