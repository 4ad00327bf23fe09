"""Hostile stores and artifacts: files that someone has made, or that are what no penult would write.

Whatever they hold, reading them runs no code, changes nothing outside the store, takes no more than a bounded amount
of memory and time, and ends in one of penult's errors, a sentence each, or in a result that is right.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import random
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import lance
import numpy as np
import pyarrow as pa

from builders import SPEC, commit, journal, pictures
from conftest import CountingEngine, write_picture
from faults import Faults, own_folder
from featurestore import layout
from featurestore.errors import PenultError, StoreCorrupt
from featurestore.journal import Staging, pending
from featurestore.runs import RunRecord, new_run_id
from featurestore.schema import SPEC_KEY
from featurestore.status import status
from featurestore.storage.files import SEAL, sealed, sha256_of, write_sealed
from featurestore.store import FeatureStore
from heads import artifact, registry
from heads.comparison import search
from heads.comparison.fit_cache import Outcome, Results, key_of
from heads.spec import HeadSpec
from pipelines.backbones import finetuned, foreign
from pipelines.embedding import worker
from pipelines.embedding.embed import embed
from pipelines.finetuning import checkpoint
from pipelines.options import EmbedOptions

MEMORY = 3 * 2**29  # bytes that a trial may take beside what its process has: 16 MiB of JSON may become 0.6 GiB
SECONDS = 60
SENTENCE = 1500  # characters
OLD, PENDING, TRAINED = (f"2026010{i}T000000000000Z-{kind}" for i, kind in enumerate(("embed", "embed", "train")))
TUNED, DIGEST = "20260104T000000000000Z-finetune", "d" * 16
UNFINISHED = "20260105T000000000000Z-train"
KEY = key_of("data")


def faults(seed: int, count: int) -> Faults:
    """The fixed list, and ``count`` random changes of the values in the store's JSON files."""
    files = [(place, what) for place in PLACES for what in ODD_FILES if what != "many values" or place == HEAD]
    yield from ((f"{place} {what}", partial(odd_file, place, what)) for place, what in files)
    yield from ((f"head.npz {what}", partial(odd_arrays, what)) for what in ODD_ARRAYS)
    yield from ((f"journal {what}", partial(odd_journal, what)) for what in ODD_JOURNALS)
    yield from ((f"link {what}", partial(link, what)) for what in LINKS)
    yield from ((f"table {what}", partial(odd_table, what)) for what in ODD_TABLES)
    yield from ((f"spec {what}", partial(odd_spec, what)) for what in ODD_SPECS)
    yield from ((f"newer {place}", partial(newer, place)) for place in ("penult.json", HEAD))
    yield from ((f"recipe {what}", partial(odd_recipe, what)) for what in ODD_RECIPES)
    yield from ((f"checkpoint {what}", partial(odd_checkpoint, what)) for what in ODD_CHECKPOINTS)
    yield from ((f"weights {what}", partial(odd_weights, what)) for what in ODD_WEIGHTS)
    yield "tar members", tar_members
    yield from ((f"values {number}", partial(odd_values, f"{seed} {number}")) for number in range(count))


# --- a store with one of each


RUN, HEAD, RESULT = f"runs/{TRAINED}/run.json", f"runs/{TRAINED}/head.json", f"results/{KEY[:2]}/{KEY}.json"
BACKBONE, MODEL = f"backbones/{TUNED}.json", "backbones/models/mine.json"
BEGUN = f"finetune/{DIGEST}/begun.json"
NOTE, ENTRY = f"staging/{PENDING}/run.json", f"staging/{PENDING}/shards/0.json"
LEDGER = "catalog.lance/ledger.json"
PLACES = ("penult.json", LEDGER, RUN, HEAD, RESULT, BACKBONE, MODEL, BEGUN, NOTE, ENTRY)


def store_in(folder: Path) -> Path:
    """A new store beside a folder of somebody's, which nothing may touch."""
    shutil.copytree(_template(), folder, dirs_exist_ok=True)
    return folder / "store"


@cache
def _template() -> Path:
    folder = own_folder()
    (folder / "outside" / "inner").mkdir(parents=True)
    (folder / "outside" / "mine.txt").write_text("mine")
    store = FeatureStore.create(folder / "store")
    commit(store, OLD, pictures(range(12)))
    data = store.dataset()
    head = registry.fit(HeadSpec("ncm"), data.X, data.y)
    artifact.save(head, store.run_folder(TRAINED), {"feature_set": data.feature_set, "fingerprint": data.fingerprint})
    RunRecord(TRAINED, "train", "2026-01-03T00:00:00+00:00", {}, {"head_id": TRAINED}).write(store.run_folder(TRAINED))
    Results(store.path / "results").put(KEY, Outcome(np.arange(12) > 5, 1.0))
    (store.path / "backbones").mkdir()
    weights = hashlib.sha256(b"weights").hexdigest()
    (store.path / "backbones" / f"{weights}.weights.h5").write_bytes(b"weights")
    tap = {"backbone": "MobileNet", "layer": "x", "pooling": "avg", "input_size": 32, "crop": "squash"}
    write_sealed(store.path / BACKBONE, {"id": TUNED, "sha256": weights, **tap})
    (store.path / MODEL).parent.mkdir()
    about = {"sha256": weights, "graph_sha256": weights, "width": 3, "batch": None, "layer": "x"}
    write_sealed(store.path / MODEL, {"name": "mine", "spec": {"size": 64, "layout": "NHWC"}, **about})
    with checkpoint.own_folder(store.path / "finetune" / DIGEST, new_run_id):
        pass
    store.run_folder(UNFINISHED).mkdir()
    (store.run_folder(UNFINISHED) / "report.html").write_text("nothing yet")
    new = [*pictures(range(20, 24)), replace(pictures([3])[0], content=b"changed", replaces=True)]
    journal(store, PENDING, [new[:2], new[2:]])
    return folder


def use(store: Path) -> dict[str, str]:
    """Read everything in a store as penult does; what each reader refused, and why."""
    refused: dict[str, str] = {}

    def reader(name: str, read: Callable[[], Any]) -> None:
        try:
            read()
        except PenultError as error:
            refused[name] = str(error)
            assert 0 < len(str(error)) <= SENTENCE, f"{name}: not a sentence: {len(str(error))} characters"

    def opened() -> FeatureStore:
        return FeatureStore(store)

    def recover() -> None:
        with opened().lock():
            opened().recover()

    def begun() -> None:
        with checkpoint.own_folder(store / "finetune" / DIGEST, new_run_id):
            pass

    reader("open", opened)
    reader("runs", lambda: [RunRecord.read(path.parent) for path in store.glob("runs/*/run.json")])
    reader("head", lambda: artifact.load(store / "runs" / TRAINED)[0].predict(np.zeros((2, SPEC.width), np.float32)))
    reader("results", lambda: Results(store / "results").get(KEY))
    reader("backbone", lambda: finetuned.find(opened(), finetuned.PREFIX + TUNED))
    reader("model", lambda: foreign.find(store, "mine"))
    reader("begun", begun)
    reader("journals", lambda: [(staging.damaged(), list(staging.entries())) for staging in pending(store)])
    reader("status", lambda: status(opened()))
    reader("features", lambda: opened().dataset())
    reader("recover", recover)
    reader("features after", lambda: opened().dataset())
    return refused


def tidy_up(store: Path) -> None:
    """What looks at everything, and changes it."""
    from pipelines import maintenance

    for work in (maintenance.verify, maintenance.doctor, partial(maintenance.gc, older_than=0.0)):
        try:
            work(store)
        except PenultError as error:
            assert len(str(error)) <= SENTENCE, f"not a sentence: {len(str(error))} characters"


@contextmanager
def harmless(folder: Path) -> Iterator[None]:
    """Within, little memory and time is taken; then nothing but the store has changed."""
    before = _outside(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    taken = int(Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0]) * 1024

    def late(*_: object) -> None:
        raise AssertionError(f"still busy after {SECONDS} s")

    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_DATA, (taken + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    assert _outside(folder) == before, f"outside the store: {set(_outside(folder).items()) ^ set(before.items())}"


def _outside(folder: Path) -> dict[str, str]:
    """What is beside the store."""
    found = {}
    for path in folder.rglob("*"):
        if path.relative_to(folder).parts[0] != "store":
            plain = stat.S_ISREG(path.lstat().st_mode) and path.stat().st_size < 2**20
            found[str(path.relative_to(folder))] = sha256_of(path) if plain else str(stat.S_IFMT(path.lstat().st_mode))
    return found


def catalog_of(store: Path) -> dict[str, bytes | None]:
    """The catalog, read without penult; each uri must be there once."""
    rows = lance.dataset(store / "catalog.lance").to_table().to_pylist()
    assert len({row["uri"] for row in rows}) == len(rows), "a row is twice in the catalog"
    return {row["uri"]: row["sha256"] for row in rows}


# --- JSON files that are something else


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**30)


def _pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as bound:  # its address may have 108 bytes only
        here = os.open(path.parent, os.O_RDONLY)
        try:
            bound.bind(f"/proc/self/fd/{here}/{path.name}")
        finally:
            os.close(here)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link(to: str) -> Callable[[Path], None]:
    def put(path: Path) -> None:
        path.unlink()
        path.symlink_to(to)

    return put


def _bytes(data: bytes) -> Callable[[Path], None]:
    return lambda path: _write(path, data)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _with_twice(path: Path) -> None:
    """Its first key once more, with another value."""
    told = path.read_text()
    key = next(iter(json.loads(told)))
    path.write_text(told.rstrip()[:-1] + f', "{key}": null}}')


ODD_FILES: dict[str, Callable[[Path], None]] = {
    "of 1 GB": _sparse,
    "of 1 GB of text": lambda path: (_write(path, b'{"a": "'), os.truncate(path, 2**30))[0],
    "many values": _bytes(b"[" + b"{},[]," * 2_600_000 + b"0]"),
    "deep": _bytes(b"[" * 10**6),
    "deep objects": _bytes(b'{"a":' * 10**6),
    "NaN": _bytes(b'{"format_version": NaN}'),
    "infinity": _bytes(b'{"format_version": 1e999}'),
    "a long number": _bytes(b'{"format_version": ' + b"9" * 10**6 + b"}"),
    "a key twice": _with_twice,
    "half a character": _bytes(b'{"format_version": "\\ud800"}'),
    "no UTF-8": _bytes(b'{"format_version": "\xff"}'),
    "zeros": _bytes(bytes(1000)),
    "empty": _bytes(b""),
    "a list": _bytes(b"[1, 2]"),
    "a number": _bytes(b"3"),
    "nothing": _bytes(b"null"),
    "no keys": _bytes(b"{}"),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "gone": lambda path: path.unlink(),
    "a pipe": _pipe,
    "a socket": _socket,
    "a folder": _folder,
    "a device": _link("/dev/zero"),
    "a link to itself": lambda path: _link(path.name)(path),
    "a link to nothing": _link("/nowhere/at/all"),
}
ABSENT = ("gone", "a link to nothing", "a link to itself")
# What is refused where one of these files cannot be read; the others do without it.
REFUSED = {
    "penult.json": "open",
    LEDGER: "features",
    RUN: "runs",
    HEAD: "head",
    BACKBONE: "backbone",
    BEGUN: "begun",
}


def odd_file(place: str, what: str, folder: Path) -> None:
    """Something else in the place of a JSON file."""
    store = store_in(folder)
    before = catalog_of(store)
    ODD_FILES[what](store / place)
    damaged = [path for staging in pending(store) for path in staging.damaged()] if place in (NOTE, ENTRY) else []
    with harmless(folder):
        refused = use(store)
        tidy_up(store)
    if place in REFUSED and what not in ABSENT:
        assert REFUSED[place] in refused, f"nobody refused it: {refused}"
    if place == RESULT:
        assert not refused, refused
    if place in (NOTE, ENTRY):
        assert what in ABSENT or (store / place) in damaged, f"the journal does not name it: {damaged}"
        assert not refused, refused
        after = catalog_of(store)
        if place == ENTRY:
            before = {uri: sha256 for uri, sha256 in after.items() if uri not in before} | before
            assert {"22", "23"} <= after.keys() and "20" not in after, sorted(after)
        assert after.keys() == before.keys()


# --- arrays


class Payload:
    """Unpickled, it leaves a file in the folder that it was told."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def _npy(header: bytes, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    width = 2 if version == b"\x01\x00" else 4
    return b"\x93NUMPY" + version + len(header).to_bytes(width, "little") + header + data


def _shaped(shape: str, descr: str = "'<f4'", data: bytes = b"") -> bytes:
    return _npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode(), data)


def _zip(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            with mock.patch("warnings.warn"):  # of names that are there twice
                archive.writestr(name, data)
    return buffer.getvalue()


@cache
def _bomb() -> bytes:
    """Two gigabytes of zeros in a few megabytes."""
    buffer = io.BytesIO()
    archive = zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with archive, archive.open("coef.npy", "w", force_zip64=True) as file:
        file.write(_shaped("(536870912,)"))
        for _ in range(2**7):
            file.write(bytes(2**24))
    return buffer.getvalue()


def _swapped(members: list[tuple[str, bytes]], name: str, data: bytes) -> bytes:
    return _zip([(n, data if n == name else d) for n, d in members])


def _lying(members: list[tuple[str, bytes]]) -> bytes:
    """A zip whose directory says that its first member has 4 GB."""
    data = bytearray(_zip(members))
    at = data.index(b"PK\x01\x02")
    data[at + 20 : at + 28] = b"\xf0\xff\xff\xff" * 2
    return bytes(data)


def _encrypted(members: list[tuple[str, bytes]]) -> bytes:
    data = bytearray(_zip(members))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    data[6] |= 1
    return bytes(data)


def _flipped(members: list[tuple[str, bytes]]) -> bytes:
    """A bit of the first array's numbers changed, which only the zip's own CRC would tell."""
    data = bytearray(_zip(members))
    data[data.index(b"PK\x03\x04", 10) - 3] ^= 1
    return bytes(data)


def _array(array: np.ndarray, pickled: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=pickled)
    return buffer.getvalue()


Members = list[tuple[str, bytes]]
ODD_ARRAYS: dict[str, Callable[[Members, Path], bytes]] = {
    "pickled objects": lambda m, f: _swapped(
        m, "coef.npy", _array(np.array([Payload(f / "outside" / "ran")], object), True)
    ),
    "a pickle": lambda m, f: pickle.dumps(Payload(f / "outside" / "ran")),
    "a pickle in the zip": lambda m, f: _swapped(m, "coef.npy", pickle.dumps(Payload(f / "outside" / "ran"))),
    "compressed": lambda m, f: _zip(m, zipfile.ZIP_DEFLATED),
    "a bomb": lambda m, f: _bomb(),
    "an absurd shape": lambda m, f: _swapped(m, "coef.npy", _shaped("(1000000000000,)")),
    "a negative shape": lambda m, f: _swapped(m, "coef.npy", _shaped("(-1, 8)", data=bytes(32))),
    "no numbers of a long shape": lambda m, f: _swapped(m, "coef.npy", _shaped(f"(0, {10**30})")),
    "code for a header": lambda m, f: _swapped(m, "coef.npy", _npy(b"__import__('os').mkdir('ran')\n")),
    "a deep header": lambda m, f: _swapped(m, "coef.npy", _npy(b"(" * 9000)),
    "a long header": lambda m, f: _swapped(m, "coef.npy", _npy(b" " * 10**6, version=b"\x02\x00")),
    "a header that is cut": lambda m, f: _swapped(m, "coef.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{"),
    "another version": lambda m, f: _swapped(m, "coef.npy", b"\x93NUMPY\x09\x00" + bytes(20)),
    "a structure": lambda m, f: _swapped(m, "coef.npy", _array(np.zeros(4, "f4,f4"))),
    "dates": lambda m, f: _swapped(m, "coef.npy", _array(np.zeros((8, 3), "M8[s]"))),
    "text": lambda m, f: _swapped(m, "coef.npy", _array(np.full((8, 3), "x"))),
    "NaN": lambda m, f: _swapped(m, "coef.npy", _array(np.full((8, 3), np.nan))),
    "another shape": lambda m, f: _swapped(m, "coef.npy", _array(np.zeros((3, 8)))),
    "another dtype": lambda m, f: _swapped(m, "coef.npy", _array(np.zeros((8, 3), np.float16))),
    "a scale of 0": lambda m, f: _swapped(m, "scale.npy", _array(np.zeros(8, np.float32))),
    "a temperature of 0": lambda m, f: _swapped(m, "temperature.npy", _array(np.float64(0))),
    "one array twice": lambda m, f: _zip([*m, m[0]]),
    "one array less": lambda m, f: _zip(m[1:]),
    "a name that leads out": lambda m, f: _zip([*m, ("../../../outside/ran.npy", m[0][1])]),
    "a name from the root": lambda m, f: _zip([*m, (f"{f}/outside/ran.npy", m[0][1])]),
    "a size that is not true": lambda m, f: _lying(m),
    "a password": lambda m, f: _encrypted(m),
    "a flipped bit": lambda m, f: _flipped(m),
    "no zip": lambda m, f: b"no zip at all",
    "empty": lambda m, f: b"",
    "cut": lambda m, f: _zip(m)[:-30],
    "one array, no zip": lambda m, f: m[0][1],
}


def odd_arrays(what: str, folder: Path) -> None:
    """A head's arrays replaced, the digest and the seal corrected, and the layout too where numpy can tell it."""
    store = store_in(folder)
    npz = store / "runs" / TRAINED / artifact.ARRAYS
    with zipfile.ZipFile(npz) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    for layout_too in (False, True):
        npz.write_bytes(ODD_ARRAYS[what](members, folder))
        told = json.loads((store / HEAD).read_text())
        del told[SEAL]
        told["sha256"] = sha256_of(npz)
        if layout_too:
            told["arrays"]["coef"] = {"dtype": "float32", "shape": [2**29]}  # room for anything
        write_sealed(store / HEAD, told)
        with harmless(folder):
            refused = use(store)
        assert "head" in refused, "this head was read"
    os.truncate(npz, 2**33)
    with harmless(folder):
        assert "head" in use(store), "a head of 8 GB was read"


# --- journals


def _entry(store: Path, **changes: Any) -> None:
    told = json.loads((store / ENTRY).read_text())
    del told[SEAL]
    write_sealed(store / ENTRY, told | changes)


def _note(store: Path, **changes: Any) -> None:
    told = json.loads((store / NOTE).read_text())
    del told[SEAL]
    write_sealed(store / NOTE, told | changes)


def _fragment(store: Path, **changes: Any) -> None:
    """Its first file, as the journal's fragment describes it, with other values."""
    fragments = json.loads((store / ENTRY).read_text())["fragments"]

    def change(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: change(v) for k, v in value.items()} | (changes if "path" in value else {})
        return [change(v) for v in value] if isinstance(value, list) else value

    _entry(store, fragments=[json.dumps(change(json.loads(fragment))) for fragment in fragments])


def _rows(store: Path, rows: Callable[[pa.Table], pa.Table]) -> None:
    """Other catalog rows, their digest corrected."""
    path = (store / ENTRY).parent / json.loads((store / ENTRY).read_text())["rows_file"]
    with pa.OSFile(str(path)) as source:
        table = rows(pa.ipc.open_file(source).read_all())
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    _entry(store, rows_sha256=sha256_of(path))


def _rows_outside(store: Path) -> None:
    """The rows themselves, of the right digest, but elsewhere."""
    next(_shards(store).glob("0.*.arrow")).rename(store.parent / "outside" / "rows.arrow")
    _entry(store, rows_file="../../../../outside/rows.arrow")


def _bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _shards(store: Path) -> Path:
    return (store / ENTRY).parent


def _copied(store: Path) -> None:
    """The whole journal once more, under another name."""
    shutil.copytree(store / "staging" / PENDING, store / "staging" / f"{PENDING}-copy")


# What the journal has, and how many of the five images of its two shards are kept; the others are planned again.
ODD_JOURNALS: dict[str, tuple[Callable[[Path], Any], int]] = {
    "rows outside": (_rows_outside, 3),
    "rows from the root": (lambda s: _entry(s, rows_file="/etc/passwd"), 3),
    "rows in the folder above": (lambda s: _entry(s, rows_file=".."), 3),
    "a shard below 0": (lambda s: _entry(s, shard=-1), 3),
    "another shard": (lambda s: _entry(s, shard=1), 3),
    "a shard that is text": (lambda s: _entry(s, shard="0"), 3),
    "no list of fragments": (lambda s: _entry(s, fragments="[]"), 3),
    "fragments that are no JSON": (lambda s: _entry(s, fragments=["{"]), 3),
    "deep fragments": (lambda s: _entry(s, fragments=["[" * 10**6]), 3),
    "a fragment outside": (lambda s: _fragment(s, path="../../../outside/mine.txt"), 3),
    "a fragment from the root": (lambda s: _fragment(s, path="/etc/passwd"), 3),
    "a fragment of another base": (lambda s: _fragment(s, base_id=0), 3),
    "a fragment that is gone": (lambda s: _fragment(s, path="gone.lance"), 3),
    "one more field": (lambda s: _entry(s, more=1), 3),
    "no seal": (lambda s: _write(s / ENTRY, json.dumps(_unsealed(s / ENTRY)).encode()), 5),
    "no digest": (lambda s: _entry(s, rows_sha256=None), 5),
    "another digest": (lambda s: _entry(s, rows_sha256="0" * 64), 3),
    "a bit of the rows": (lambda s: _bit(next(_shards(s).glob("0.*.arrow"))), 3),
    "rows of a pipe": (lambda s: _pipe(next(_shards(s).glob("0.*.arrow"))), 3),
    "rows that are gone": (lambda s: next(_shards(s).glob("0.*.arrow")).unlink(), 3),
    "rows of another run": (lambda s: _rows(s, lambda t: _set(t, "run_id", ["other"] * t.num_rows)), 3),
    "rows of another schema": (lambda s: _rows(s, lambda t: t.drop_columns(["error"])), 3),
    "a bit of the plan": (lambda s: _bit(s / "staging" / PENDING / "plan.arrow"), 5),
    "no plan": (lambda s: (s / "staging" / PENDING / "plan.arrow").unlink(), 5),
    "a plan of 1 GB": (lambda s: _sparse(s / "staging" / PENDING / "plan.arrow"), 5),
    "a bit of the labels": (lambda s: _bit(s / "staging" / PENDING / "labels.arrow"), 5),
    "no labels": (lambda s: (s / "staging" / PENDING / "labels.arrow").unlink(), 5),
    "a set outside": (lambda s: _note(s, feature_set="../../outside/x"), 0),
    "a set that is no text": (lambda s: _note(s, feature_set=7), 0),
    "another run's note": (lambda s: _note(s, run_id="other"), 0),
    "files that are no object": (lambda s: _note(s, files=3), 0),
    "the same once more": (_copied, 5),
    "other entries": (lambda s: [_write(_shards(s) / n, b"{}") for n in ("x.json", "00.json", "-1.json", "٣.json")], 5),
    "other files": (lambda s: [_write(s / "staging" / name, b"") for name in ("file", ".hidden")], 5),
    "progress of 1 GB": (lambda s: _sparse(_shards(s) / "0.progress"), 5),
    "progress that is text": (lambda s: _write(_shards(s) / "0.progress", b"x"), 5),
    "names for SQL": (lambda s: (s / "staging" / "x' OR '1'='1").mkdir(), 5),
}


def _set(table: pa.Table, name: str, values: list[str]) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), pa.array(values))


def _unsealed(path: Path) -> dict[str, Any]:
    told = json.loads(path.read_text())
    del told[SEAL]
    return told


def odd_journal(what: str, folder: Path) -> None:
    """A journal of a run that died, as no run writes it."""
    store = store_in(folder)
    before = catalog_of(store)
    spoil, kept = ODD_JOURNALS[what]
    spoil(store)
    with harmless(folder):
        Staging(store, PENDING).watch().read()
        refused = use(store)
    assert not refused, refused
    after = catalog_of(store)
    new = {uri for uri, sha256 in after.items() if before.get(uri) != sha256}
    assert len(new) == kept, f"Expected: {kept} new rows. Got: {sorted(new)}"
    assert before.keys() <= after.keys(), "a row is lost"
    left = {path.name for path in (store / "staging").iterdir()} - {"file", ".hidden", "x' OR '1'='1"}
    assert not left, left
    read = FeatureStore(store)
    table = read.to_arrow(read.resolve())
    assert len(set(table.column("sha256").to_pylist())) == table.num_rows


# --- links that lead out of the store


def _moved(path: Path, folder: Path) -> None:
    """Somewhere else, with a link in its place."""
    path.rename(folder / "outside" / "moved")
    path.symlink_to(folder / "outside" / "moved")


LINKS = {
    "journals": "staging",
    "journal": f"staging/{PENDING}",
    "shards": f"staging/{PENDING}/shards",
    "run": f"runs/{TRAINED}",
    "runs": "runs",
    "checkpoint": f"finetune/{DIGEST}",
    "checkpoints": "finetune",
    "head": f"runs/{TRAINED}/head.npz",
    "data": "data",
    "results": "results",
    "backbones": "backbones",
}


def link(what: str, folder: Path) -> None:
    """A part of the store that lies elsewhere is read, or refused; it is never removed."""
    store = store_in(folder)
    path = _data(store) if what == "data" else store / LINKS[what]
    _moved(path, folder)
    with harmless(folder):
        use(store)
        tidy_up(store)


# --- tables


def _cloned(store: Path, folder: Path) -> None:
    """A table whose files are all outside, as Lance's shallow clones have them."""
    table = next((store / "features").glob("*.lance"))
    table.rename(folder / "outside" / table.name)
    original = lance.dataset(folder / "outside" / table.name)
    original.shallow_clone(str(table), reference=original.version)
    _of_header(store, **{f"features/{table.name}": {"version": 1, "rows": 12}})


def _pipe_for_manifest(store: Path, folder: Path) -> None:
    _pipe(min((store / "labels.lance" / "_versions").glob("*.manifest")))


def _data(store: Path) -> Path:
    """A file of committed vectors."""
    table = store / "features" / f"{SPEC.set_name}.lance"
    return table / "data" / lance.dataset(table).get_fragments()[0].metadata.files[0].path


def _long_manifest(store: Path, folder: Path) -> None:
    os.truncate(min(next((store / "features").glob("*.lance")).glob("_versions/*.manifest")), 2**31)


def _long_data(store: Path, folder: Path) -> None:
    os.truncate(_data(store), 2**33)


def _pipe_for_data(store: Path, folder: Path) -> None:
    _pipe(_data(store))


def _hint(store: Path, folder: Path) -> None:
    os.truncate(store / "labels.lance" / "_versions" / "latest_version_hint.json", 2**33)


def _of_header(store: Path, **tables: Any) -> None:
    told = _unsealed(store / "penult.json")
    write_sealed(store / "penult.json", told | {"tables": told["tables"] | tables})


ODD_TABLES: dict[str, tuple[Callable[[Path, Path], Any], str | None]] = {
    "cloned from outside": (_cloned, "features"),
    "a pipe for a manifest": (_pipe_for_manifest, "features"),
    "a hint of 8 GB": (_hint, None),
    "a manifest of 2 GB": (_long_manifest, "features"),
    "data of 8 GB": (_long_data, "features"),
    "a pipe for data": (_pipe_for_data, "features"),
    "a header of one outside": (
        lambda s, f: _of_header(s, **{"../outside": {"version": 1, "rows": 0}}),
        "open",
    ),
    "a header with a table of text": (lambda s, f: _of_header(s, **{"catalog.lance": "x"}), "open"),
    "a header with no version": (lambda s, f: _of_header(s, **{"catalog.lance": {"rows": 1}}), "open"),
    "a header with a version of text": (
        lambda s, f: _of_header(s, **{"catalog.lance": {"version": "1", "rows": 1}}),
        "open",
    ),
}


def odd_table(what: str, folder: Path) -> None:
    """A table that leads elsewhere, or a header that names one."""
    store = store_in(folder)
    spoil, refuses = ODD_TABLES[what]
    spoil(store, folder)
    with harmless(folder):  # in another process: Lance ends the one that it has no memory in, and waits for ever
        done = subprocess.run(
            [sys.executable, "-m", "hostile.artifacts", str(store)],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    assert done.returncode == 0, done.stderr[-1000:]
    refused = json.loads(done.stdout)
    assert (refuses in refused) if refuses else not refused, refused


ODD_SPECS: dict[str, Callable[[dict[str, Any]], str]] = {
    "no JSON": lambda told: "{",
    "deep": lambda told: "[" * 10**6,
    "a list": lambda told: "[]",
    "a number": lambda told: "1",
    "newer": lambda told: json.dumps(told | {"format_version": 99}),
    "a version of text": lambda told: json.dumps(told | {"format_version": "1"}),
    "a dtype that is none": lambda told: json.dumps(told | {"dtype": "object"}),
    "a dtype of much": lambda told: json.dumps(told | {"dtype": "V1000000000"}),
    "a width of text": lambda told: json.dumps(told | {"width": "8"}),
    "a backbone that leads out": lambda told: json.dumps(told | {"backbone": "../../outside"}),
    "a preprocessing of text": lambda told: json.dumps(told | {"preprocessing": "x"}),
    "an augmentation of a number": lambda told: json.dumps(told | {"augmentation": 7}),
    "one more field": lambda told: json.dumps(told | {"more": 1}),
    "of 50 MB": lambda told: json.dumps(told | {"layer": "x" * 50_000_000}),
}


def odd_spec(what: str, folder: Path) -> None:
    """A feature set whose description is what no penult writes."""
    store = store_in(folder)
    name = "odd-00000000"
    told = ODD_SPECS[what](json.loads(SPEC.to_json()))
    schema = FeatureStore(store).table(SPEC.set_name).schema.with_metadata({SPEC_KEY: told.encode()})
    lance.write_dataset(schema.empty_table(), store / "features" / f"{name}.lance", data_storage_version="2.2")
    with harmless(folder):
        opened, refused = FeatureStore(store), 0
        for read in (lambda: opened.spec(name), lambda: opened.dataset(name), lambda: status(opened)):
            try:
                read()
            except PenultError as error:
                refused += 1
                assert len(str(error)) <= SENTENCE, f"not a sentence: {len(str(error))} characters"
    assert refused >= 2, "this spec was believed"


def newer(place: str, folder: Path) -> None:
    """What a newer penult has written is refused, and says so."""
    store = store_in(folder)
    told = _unsealed(store / place) | {"format_version": 99, "something": ["unheard", "of"]}
    for write in (write_sealed, lambda path, value: path.write_text(json.dumps(value))):
        write(store / place, told)
        with harmless(folder):
            refused = use(store)
        assert "newer penult" in refused[REFUSED[place]], refused


# --- recipes, checkpoints, weights, tars


ODD_RECIPES: dict[str, Callable[[Path], None]] = {
    "deep": _bytes(b"class_weight = " + b"[" * 10**5),
    "deep tables": _bytes(b"[" + b".".join([b"a"] * 10**5) + b"]"),
    "no UTF-8": _bytes(b"class_weight = ['\xff']"),
    "too many points": _bytes(
        b"[heads.dense]\n"
        + b"\n".join(
            b"%s = %s" % (name, str(list(range(1, 200))).encode())
            for name in (b"hidden", b"dropout", b"epochs", b"batch_size", b"patience", b"learning_rate")
        )
    ),
    "a family of the interpreter": _bytes(b"[heads.__class__]\n__init__ = [1]"),
    "no table": _bytes(b"heads = 3"),
    "values that are no lists": _bytes(b"[heads.logreg]\nC = 1"),
    "weights of objects": _bytes(b"class_weight = [{a = 1}]"),
    "a key twice": _bytes(b"class_weight = []\nclass_weight = []"),
    "zeros": _bytes(bytes(100)),
    "of 1 GB": _sparse,
    "a pipe": _pipe,
    "a folder": lambda path: path.mkdir(),
}


def odd_recipe(what: str, folder: Path) -> None:
    """A recipe for ``penult compare --search``."""
    path = folder / "recipe.toml"
    ODD_RECIPES[what](path)
    with harmless(folder):
        try:
            search.from_file(path)
        except PenultError as error:
            assert len(str(error)) <= SENTENCE, f"not a sentence: {len(str(error))} characters"
        else:
            raise AssertionError("this recipe was believed")


class FewWeights:
    """What of a trainer a checkpoint is about."""

    def __init__(self) -> None:
        self.put: list[list[np.ndarray]] = []

    def weights(self) -> list[np.ndarray]:
        return [np.ones((2, 3), np.float32), np.zeros(3, np.float32)]

    def momenta(self) -> list[np.ndarray]:
        return [np.array(3), np.zeros((2, 3), np.float32)]

    def set_weights(self, weights: list[np.ndarray]) -> None:
        self.put.append(weights)

    set_momenta = set_weights


ROW = {"epoch": 1, "loss": 1.0, "accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5, "seconds": 1.0}
COURSE: dict[str, Any] = {"history": [ROW], "start": ROW, "best_epoch": 1}


def _told(told: Any) -> Callable[[Members, Path], bytes]:
    text = told if isinstance(told, str) else json.dumps(told)
    return lambda m, f: _swapped(m, "told.npy", _array(np.array(text)))


ODD_CHECKPOINTS: dict[str, Callable[[Members, Path], bytes]] = {
    "pickled objects": lambda m, f: _swapped(
        m, "weights0.npy", _array(np.array([Payload(f / "outside" / "ran")], object), True)
    ),
    "a pickle": lambda m, f: pickle.dumps(Payload(f / "outside" / "ran")),
    "a bomb": lambda m, f: _bomb(),
    "another shape": lambda m, f: _swapped(m, "weights0.npy", _array(np.zeros((3, 2), np.float32))),
    "an absurd shape": lambda m, f: _swapped(m, "weights0.npy", _shaped("(1000000000000,)")),
    "NaN": lambda m, f: _swapped(m, "best1.npy", _array(np.full(3, np.nan, np.float32))),
    "one array less": lambda m, f: _zip(m[:-1]),
    "no course": _told({}),
    "a course of a list": _told([1]),
    "a deep course": _told("[" * 10**6),
    "a history of text": _told(COURSE | {"history": "x"}),
    "a history of numbers": _told(COURSE | {"history": [1]}),
    "scores of text": _told(COURSE | {"history": [ROW | {"val_loss": "1"}]}),
    "scores that are none": _told(json.dumps(COURSE | {"start": ROW | {"val_loss": math.nan}})),
    "a best epoch to come": _told(COURSE | {"best_epoch": 7}),
    "a best epoch of text": _told(COURSE | {"best_epoch": "1"}),
    "cut": lambda m, f: _zip(m)[:-30],
    "a flipped bit": lambda m, f: _flipped(m),
    "empty": lambda m, f: b"",
}


def odd_checkpoint(what: str, folder: Path) -> None:
    """The state of an interrupted fine-tuning."""
    store = store_in(folder)
    began = store / "finetune" / DIGEST
    trainer: Any = FewWeights()
    checkpoint.save(began, trainer, checkpoint.Course(*COURSE.values(), best=trainer.weights()))
    assert checkpoint.resume(began, trainer) is not None and len(trainer.put) == 2
    path = began / layout.CHECKPOINT
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    path.write_bytes(ODD_CHECKPOINTS[what](members, folder))
    with harmless(folder):
        try:
            checkpoint.resume(began, trainer)
        except StoreCorrupt as error:
            assert len(str(error)) <= SENTENCE, str(error)
        else:
            raise AssertionError("this checkpoint was read")
    assert len(trainer.put) == 2, "the network was changed before all was known"


# Each makes a weights file: its name, and how it is written, given a network's own file and the trial's folder.
ODD_WEIGHTS: dict[str, tuple[str, Callable[[Path, Path, Path], None]]] = {
    "pickled": ("x.pth", lambda path, own, f: _write(path, pickle.dumps(Payload(f / "outside" / "ran")))),
    "pickled, in Keras's place": (
        "x.h5",
        lambda path, own, f: _write(path, pickle.dumps(Payload(f / "outside" / "ran"))),
    ),
    "pickled, of PyTorch": ("x.pth", lambda path, own, f: _write(path, _torch_pickle(f))),
    "a zip of PyTorch": ("x.pth", lambda path, own, f: _write(path, _zip([("a/data.pkl", _torch_pickle(f))]))),
    "a deep pickle": ("x.pth", lambda path, own, f: _write(path, b"(" * 10**6 + b".")),
    "a long pickle": ("x.pth", lambda path, own, f: _write(path, b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.")),
    "a pickle that grows": ("x.pth", lambda path, own, f: _write(path, _growing_pickle())),
    "a model with a lambda": ("x.weights.h5", lambda path, own, f: _lambda(path, f)),
    "no HDF5": ("x.weights.h5", lambda path, own, f: _write(path, b"x" * 1000)),
    "cut": ("x.weights.h5", lambda path, own, f: _write(path, own.read_bytes()[:-1000])),
    "numbers from outside": ("x.weights.h5", lambda path, own, f: _h5(path, own, f, "external")),
    "a link to outside": ("x.weights.h5", lambda path, own, f: _h5(path, own, f, "link")),
    "a huge array": ("x.weights.h5", lambda path, own, f: _h5(path, own, f, "huge")),
    "a huge array that packs well": ("x.weights.h5", lambda path, own, f: _h5(path, own, f, "packed")),
    "text": ("x.weights.h5", lambda path, own, f: _h5(path, own, f, "text")),
    "a loop": ("x.weights.h5", lambda path, own, f: _h5(path, own, f, "loop")),
    "a device": ("x.weights.h5", lambda path, own, f: path.symlink_to("/dev/zero")),
    "a pipe": ("x.weights.h5", lambda path, own, f: os.mkfifo(path)),
}


def _torch_pickle(folder: Path) -> bytes:
    """As torch.save wrote them once: a magic number, a version, what system, then the objects."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, Payload(folder / "outside" / "ran"), []]
    return b"".join(pickle.dumps(part, 2) for part in parts)


def _growing_pickle() -> bytes:
    """A list of a list of a list …, each twice in the next, in a few bytes: 2^60 items when it is printed."""
    return b"\x80\x02]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(60)) + b"."


def _lambda(path: Path, folder: Path) -> None:
    """A whole Keras model whose layer holds Python code."""
    code = f"import os; os.mkdir({str(folder / 'outside' / 'ran')!r})"
    config = {"class_name": "Lambda", "config": {"function": {"class_name": "__lambda__", "config": {"code": code}}}}
    _write(path, _zip([("config.json", json.dumps(config).encode()), ("metadata.json", b"{}")]))


def _h5(path: Path, own: Path, folder: Path, what: str) -> None:
    """A network's own weights with one array replaced by what HDF5 allows too."""
    import h5py

    shutil.copy(own, path)
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        name = max(names, key=lambda one: file[one].size)
        shape, size = file[name].shape, file[name].size
        del file[name]
        if what == "external":
            (folder / "outside" / "secret").write_bytes(bytes(4 * size))
            file.create_dataset(name, shape, "f4", external=[(str(folder / "outside" / "secret"), 0, 4 * size)])
        elif what == "link":
            with h5py.File(folder / "outside" / "other.h5", "w") as other:
                other["x"] = np.zeros(shape, "f4")
            file[name] = h5py.ExternalLink(str(folder / "outside" / "other.h5"), "/x")
        elif what == "huge":
            file.create_dataset(name, (10**6, 10**6), "f4", chunks=(1000, 1000))
        elif what == "packed":
            file.create_dataset(name, shape, "f4", chunks=shape, compression="gzip", fillvalue=0.5)
            file.create_dataset("more", (2**28,), "f4", chunks=(2**20,), compression="gzip")
        elif what == "text":
            file.create_dataset(name, shape, h5py.string_dtype())
        elif what == "loop":
            file[name] = h5py.SoftLink(name)


@cache
def _own_weights() -> Path:
    import seeded

    return seeded.weights("MobileNet", _template(), input_shape=(32, 32, 3))


def odd_weights(what: str, folder: Path) -> None:
    """A file given as ``--weights``."""
    from pipelines.backbones import networks, torchfile
    from pipelines.backbones import table as backbones

    store_in(folder)
    name, make = ODD_WEIGHTS[what]
    path = folder / name
    own = _own_weights() if name.endswith(".h5") else path
    make(path, own, folder)
    with harmless(folder):
        try:
            if path.suffix == ".pth":
                torchfile.read_state_dict(path)
            else:
                networks.build(backbones.resolve("MobileNet", path, input_size=32))
        except PenultError as error:
            assert len(str(error)) <= SENTENCE, f"not a sentence: {len(str(error))} characters"
        else:
            raise AssertionError("these weights were read")


def tar_members(folder: Path) -> None:
    """Names in a tar are names: nothing is unpacked, and what is no file is no image."""
    store = store_in(folder)
    png = write_picture(folder / "corpus" / "one.png", 99).read_bytes()
    names = ["../outside/ran.png", "../../ran.png", f"{folder}/outside/ran2.png", "a/../../b.png", "..", "a\n.png"]
    links = {"link.png": tarfile.SYMTYPE, "hard.png": tarfile.LNKTYPE, "pipe.png": tarfile.FIFOTYPE}
    with tarfile.open(folder / "corpus" / "shard.tar", "w") as tar:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            data = png + bytes(number)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, kind in {**links, "device.png": tarfile.CHRTYPE, "folder.png": tarfile.DIRTYPE}.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(folder / "outside" / "mine.txt")
            tar.addfile(member)
    before = catalog_of(store)
    counting = CountingEngine(batch_size=8)
    worker.engine_for.cache_clear()
    try:
        with harmless(folder), mock.patch.object(worker, "open_engine", lambda *_args, **_options: counting):
            result = embed(str(folder / "corpus" / "shard.tar"), store, EmbedOptions())
    finally:
        worker.engine_for.cache_clear()
    assert result.embedded == counting.images == len(names) - 1, result
    assert len(catalog_of(store)) == len(before) + len(names) - 1 + 4  # and what the dead run had finished


# --- any value anywhere

NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**63, 10**30, -0.5, 1e308, "", "x", "../../outside", "/etc/passwd", "..", "x" * 10**5,
    "\0", "%s%n", "' OR '1'='1", "é\u2028", [], [1], [[[[]]]], {}, {"a": {"b": 1}}, ["x"] * 1000, "NaN", "1", [None],
)  # fmt: skip


def odd_values(seed: str, folder: Path) -> None:
    """One value in one file is any other, or gone; half of the time whoever did it has corrected the seal."""
    draw = random.Random(seed)
    store = store_in(folder)
    place = draw.choice(PLACES)
    told = _unsealed(store / place)
    spots = [(parent, key) for parent, key in _spots(told)]
    parent, key = draw.choice(spots)
    if draw.random() < 0.15:
        del parent[key]
    else:
        parent[key] = draw.choice(NASTY)
    seal = {SEAL: json.loads((store / place).read_text())[SEAL]}
    told = sealed(told) if draw.random() < 0.7 else told | seal
    (store / place).write_text(json.dumps(told, indent=1))
    before = catalog_of(store)
    with harmless(folder):
        use(store)
    assert before.keys() <= catalog_of(store).keys(), "a row is lost"


def _spots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value."""
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, inner in items:
        yield value, key
        yield from _spots(inner)


if __name__ == "__main__":
    with harmless(Path(sys.argv[1]).parent):
        print(json.dumps(use(Path(sys.argv[1]))))
