"""Hostile images: the zoo through the decoder and through whole runs, and damage without end.

No image may raise anything but ImageError with one of its words, print anything, take more than SECONDS of a core,
or more memory than FIXED_MEMORY and BYTES_A_PIXEL of what is decoded; a run over the zoo stays within RUN_MEMORY.
Everything is played in a process of its own, so that nothing worse can happen to the battery.
"""

from __future__ import annotations

import csv
import ctypes
import io
import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import quote_from_bytes, unquote_to_bytes

import numpy as np
from decoding import decoded

import pixels
from faults import Faults
from featurestore.errors import ImageError, SourceError
from hostile import mutate, places
from hostile.craft import SIZE, seeds
from hostile.zoo import Outcome, pictures
from pipelines.backbones.engine_options import EngineOptions
from pipelines.images import decoder
from pipelines.sources import corpus

TESTS = Path(__file__).parents[1]
WORDS = {"empty", "not_an_image", "truncated", "corrupt", "too_large", "unsupported", "vanished", "unreadable"}
FIXED_MEMORY = 128 * 2**20
BYTES_A_PIXEL = 18
RUN_MEMORY = 3 * 2**30
SECONDS = 20  # for the largest lawful image; the others take milliseconds
PATIENCE = 550
SIDE = 32  # what images are decoded to
MUTANTS = 250  # a trial
KINDS = 20  # trials, of a thousand files each
LAYOUTS = ("folder", "tar", "csv", "parquet")


def faults(seed: int, count: int) -> Faults:
    """Every kind of animal, the whole zoo in every kind of corpus, and ``count`` × MUTANTS damaged files."""
    for kind in kinds():
        yield f"zoo {kind}", partial(decode, [kind])
    for layout in LAYOUTS:
        yield f"zoo in a {layout}", partial(embed, layout)
    for number in range(KINDS):
        yield f"kinds of samples {number}", partial(compare, seed, number)
    for number in range(count):
        yield f"damaged images {number}", partial(damage, "pictures", seed, number)
    for number in range(count // 10):
        yield f"damaged tars {number}", partial(damage, "tars", seed, number)


def kinds() -> list[str]:
    """What the names of animals begin with."""
    return sorted({name.partition("-")[0] for name in pictures()})


# --- trials


def decode(kinds: Sequence[str], folder: Path) -> None:
    """Each animal of these kinds has its stated outcome, and the pixels of its like."""
    _child("decode", *kinds)


def compare(seed: int, number: int, folder: Path, parts: int = KINDS) -> None:
    """A part of all kinds of files, of sizes that the seed draws: the right pixels, or "unsupported"."""
    _child("compare", str(seed), str(number), str(parts))


def damage(what: str, seed: int, number: int, folder: Path) -> None:
    """MUTANTS damaged files; those that are not survived are left in the folder."""
    _child("damage", what, str(seed), str(number), str(folder))


def embed(layout: str, folder: Path, without: tuple[str, ...] = ()) -> None:
    """The whole zoo in one run: each file is a row of its stated outcome, and a second run has nothing to do."""
    zoo = folder / "zoo \n \N{ELEPHANT}"
    laid = places.build(zoo, without)
    try:
        source, expected = globals()[f"_as_{layout}"](zoo, laid)
        told = json.loads(_child("embed", os.fsencode(source), str(folder / "store")).splitlines()[-1])
        _check_rows(folder / "store", expected)
    finally:
        (zoo / "denied").chmod(0o700)
    first, again = told["runs"]
    assert (first["seen"], first["embedded"] + first["deduplicated"] + first["failed"]) == (len(expected),) * 2, first
    assert (again["seen"], again["embedded"], again["failed"]) == (len(expected), 0, 0), again
    if layout == "folder":
        assert sum(first["ignored"].values()) == laid.ignored, f"left out: {first['ignored']}"
        assert len(first["problems"]) == laid.problems, f"problems: {first['problems']}"
    assert told["peak"] < RUN_MEMORY, f"the run took {told['peak'] / 2**20:,.0f} MiB"


def _child(*arguments: str | bytes) -> str:
    """Run this module with arguments; return what it printed, which has no line of a loss."""
    command = [sys.executable, "-m", "hostile.pictures", *arguments]
    with tempfile.TemporaryFile() as errors:
        done = subprocess.run(command, cwd=TESTS, stdout=subprocess.PIPE, stderr=errors, timeout=PATIENCE)
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    lines = done.stdout.decode().splitlines()
    lost = [line for line in lines if line.startswith("LOST")]
    assert not lost, "\n".join(lost)
    assert done.returncode == 0, f"died with {done.returncode} at {lines[-1:]}: {said}"
    assert not said, f"printed: {said}"
    return done.stdout.decode()


# --- corpora

Key = tuple[bytes, bytes | None]  # the path, and the member of a tar
Corpus = tuple[str, dict[Key, tuple[Outcome, Callable[[], bytes]]]]  # the source; outcomes and contents


def _as_folder(zoo: Path, laid: places.Laid) -> Corpus:
    return str(zoo), {(path, None): (outcome, partial(_read, path)) for path, outcome in laid.files.items()}


def _as_tar(zoo: Path, laid: places.Laid) -> Corpus:
    """Three tars of three formats; names that are long or not UTF-8 need more than ustar."""
    expected: dict[Key, tuple[Outcome, Callable[[], bytes]]] = {}
    for name, format in (("ustar", tarfile.USTAR_FORMAT), ("pax", tarfile.PAX_FORMAT), ("gnu", tarfile.GNU_FORMAT)):
        path = zoo / f"{name}.tar"
        with tarfile.open(path, "w", format=format, encoding="utf-8", errors="surrogateescape") as tar:
            for file in sorted((zoo / ("pictures" if name == "ustar" else "names")).iterdir()):
                member = str(file.relative_to(zoo))
                tar.add(file, member)
                if (found := laid.files.get(os.fsencode(file))) is not None:
                    expected[os.fsencode(path), os.fsencode(member)] = (found, file.read_bytes)
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
                special = tarfile.TarInfo(f"special-{ord(kind)}.jpg")
                special.type, special.linkname = kind, "/etc/passwd"
                tar.addfile(special)
    return f"{zoo}/{{ustar,pax,gnu}}.tar", expected


def _as_csv(zoo: Path, laid: places.Laid) -> Corpus:
    rows, expected = _manifest(zoo, laid, line_breaks=False)  # in a CSV they come from a quote that is never closed
    with (zoo / "zoo.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("path", "uri"), *rows])
    return f"{zoo}/zoo.csv", expected


def _as_parquet(zoo: Path, laid: places.Laid) -> Corpus:
    import pyarrow as pa
    from pyarrow import parquet

    rows, expected = _manifest(zoo, laid)
    table = pa.table(
        {
            name: pa.array(column, pa.string())
            for name, column in zip(("path", "uri"), zip(*rows, strict=True), strict=True)
        }
    )
    with (zoo / "zoo.parquet").open("wb") as file:
        parquet.write_table(table, file)
    return f"{zoo}/zoo.parquet", expected


def _manifest(
    zoo: Path, laid: places.Laid, line_breaks: bool = True
) -> tuple[list[tuple[str, str]], dict[Key, tuple[Outcome, Callable[[], bytes]]]]:
    """Rows (path, uri), of which one is empty; a manifest may name what a folder's listing leaves out.

    Paths that UTF-8 cannot encode are given as URIs, without ``line_breaks`` also those that hold one.
    """
    files = dict(laid.files)
    files |= {os.fsencode(zoo / "names" / os.fsdecode(name)): SIZE for name in places.NAMES}
    files |= {os.fsencode(zoo / "places" / name): "unreadable" for name in ("folder.jpg", "up")}
    files[os.fsencode(zoo / "deep")] = "unreadable"
    files[os.fsencode(zoo / "never was.jpg")] = "vanished"
    rows = []
    for path in files:
        name = str(Path(os.fsdecode(path)).relative_to(zoo))
        plain = name.encode(errors="ignore").decode() == name and (line_breaks or len(name.splitlines()) == 1)
        rows.append((name, "") if plain else ("", "file://" + quote_from_bytes(path)))
    return rows, {(path, None): (outcome, partial(_read, path)) for path, outcome in files.items()}


def _read(path: bytes) -> bytes:
    return Path(os.fsdecode(path)).read_bytes()


def _check_rows(store: Path, expected: dict[Key, tuple[Outcome, Callable[[], bytes]]]) -> None:
    """Each file is one row of its outcome, and the store is sound."""
    from faults import invariant  # Lance, which not all of these processes need

    rows = {_key(row["uri"]): row for row in invariant.rows_of(store / "catalog.lance")}
    missing, more = sorted(expected.keys() - rows.keys()), sorted(rows.keys() - expected.keys())
    assert not missing and not more, f"no rows of {missing}; rows of what is not there: {more}"
    for key, (outcome, _) in expected.items():
        row = rows[key]
        got = row["error_type"] or (row["width"], row["height"])
        assert got == outcome, f"{key}: expected {outcome}, got {got}: {row['error']}"
    contents = {
        rows[key]["uri"]: outcome if isinstance(outcome, str) else read() for key, (outcome, read) in expected.items()
    }
    invariant.check(store, contents)


def _key(uri: str) -> Key:
    path, hash_sign, member = uri.removeprefix("file://").partition("#")
    return unquote_to_bytes(path), unquote_to_bytes(member) if hash_sign else None


# --- in a process of its own


def _decode(*kinds: str) -> None:
    likes = {name: decoded(data, SIDE).pixels for name, data in seeds().items()}
    for name, animal in pictures().items():
        if name.partition("-")[0] in kinds:
            print("at", name, flush=True)
            outcome, pixels, complaints = _judged(animal.file())
            if outcome != animal.expected:
                complaints.append(f"expected {animal.expected}, got {outcome}")
            if pixels is not None and animal.like is not None:
                off = float(np.abs(pixels.astype(int) - likes[animal.like]).mean())
                if off > animal.within:
                    complaints.append(f"its pixels are off by {off:.2f} from those of {animal.like}")
            for complaint in complaints:
                print("LOST", name, complaint, flush=True)


def _compare(seed: str, number: str, parts: str) -> None:
    random_ = random.Random(f"{seed} {number}")
    size = random_.randint(9, 40), random_.randint(9, 40)
    print("at", size, flush=True)
    makes = itertools.chain(*(pixels.CONTAINERS[name](size) for name in ("png", "other", "odd tiff")))
    lines, _ = pixels.wrong(
        itertools.islice(itertools.chain(makes, pixels.tiffs(size, every=True)), int(number), None, int(parts))
    )
    for line in lines:
        print("LOST", size, line, flush=True)


def _damage(what: str, seed: str, number: str, folder: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + 2 * RUN_MEMORY,) * 2)
    judge, files = (_judged, _picture_seeds()) if what == "pictures" else (_judged_tar, _tar_seeds())
    for index in range(MUTANTS):
        random_ = random.Random(f"{what} {seed} {number} {index}")
        data = mutate.mutant(random_, files)
        print("at", index, flush=True)
        signal.alarm(3 * SECONDS)  # kills
        *_, complaints = judge(data)
        if complaints:
            path = Path(folder) / f"mutant-{index}"
            path.write_bytes(data)
            print("LOST", path, "; ".join(complaints), flush=True)


def _judged(data: bytes) -> tuple[Outcome, np.ndarray | None, list[str]]:
    """Decode a file: what came of it, its pixels, and what must not be."""
    complaints: list[str] = []
    picture, outcome = None, cast(Outcome, "raised")
    with _watched(data, complaints):
        try:
            picture = decoded(data, SIDE)
            outcome = (picture.width, picture.height)
        except ImageError as error:
            outcome = error.error_type
            if outcome not in WORDS or "MemoryError" in str(error) or not 10 < len(str(error)) < 400:
                complaints.append(f"says {outcome}: {error}")
        if picture is not None:
            measured = decoder.measure(data)
            if measured != (picture.width, picture.height, picture.format):
                complaints.append(f"is {outcome} and measures {measured}")
            if picture.width * picture.height < 2**20:
                decoder.thumbnail(data, SIDE)
    return outcome, None if picture is None else picture.pixels, complaints


def _judged_tar(data: bytes) -> tuple[list[str]]:
    """List a tar, read what is listed, and say what must not be."""
    complaints: list[str] = []
    with tempfile.NamedTemporaryFile(suffix=".tar") as file, _watched(data, complaints):
        file.write(data)
        file.flush()
        with suppress(SourceError):
            for entry in corpus.list_source(file.name):
                with suppress(ImageError):
                    found = corpus.read(entry.uri, entry.offset, entry.size)
                    if corpus.read(entry.uri) != found:
                        complaints.append(f"{entry.uri} is another content when it is looked up")
    return (complaints,)


@contextmanager
def _watched(data: bytes, complaints: list[str]) -> Iterator[None]:
    """Complain of what is raised, printed, and of too much time or memory."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, noise, began = _memory("VmRSS"), os.fstat(2).st_size, time.process_time()
    try:
        yield
    except Exception as error:
        complaints.append(f"raised {error!r}")
    seconds, peak = time.process_time() - began, _memory("VmHWM") - before
    if seconds > SECONDS:
        complaints.append(f"took {seconds:.0f} s")
    if (printed := os.fstat(2).st_size - noise) > 0:
        complaints.append(f"printed {printed} bytes")
    if peak > FIXED_MEMORY + 3 * len(data):
        with suppress(ImageError):
            width, height, _ = decoder.measure(data)
            peak -= width * height * BYTES_A_PIXEL
        if peak > FIXED_MEMORY + 3 * len(data):
            complaints.append(f"took {peak / 2**20:,.0f} MiB too many")


def _memory(what: str) -> int:
    """A line of /proc/self/status, in bytes."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(what + ":")[2].split()[0]) * 1024


def _picture_seeds() -> list[bytes]:
    """All small valid files of the zoo."""
    found = [animal.data for animal in pictures().values() if isinstance(animal.expected, tuple)]
    small = [data for data in found if isinstance(data, bytes) and len(data) < 2**16]
    made = [make() for make in [*pixels.odd_tiffs((20, 12))][::9] + [*pixels.pngs((20, 12))][::9]]
    return [*seeds().values(), *small, *(case.data for case in made if case)]


def _tar_seeds() -> list[bytes]:
    made = []
    for format in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=format) as tar:
            for name in (
                "a/1.jpg",
                "a/1.cls",
                "b/" + "n" * 90 + ".jpg",
                "b/2.json",
                "c/\u00fc.jpg",
                "l" * 150 + "/3.jpg",
            ):
                body = {".cls": b"cat", "json": b'{"label": "a", "split": "train"}'}.get(name[-4:], name.encode() * 20)
                member = tarfile.TarInfo(name)
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
        made.append(file.getvalue())
    return made


def _embed(source: str, store: str) -> None:
    from conftest import CountingEngine
    from pipelines.embedding import embed, worker

    _give_up_privileges()
    worker.open_engine = lambda *_args, **_options: CountingEngine(batch_size=8)  # type: ignore[assignment]
    options = embed.EmbedOptions(shard_images=100, engine=EngineOptions(batch_size=8))
    runs = [embed.embed(source, store, options).to_json() for _ in range(2)]
    print(json.dumps({"peak": _memory("VmHWM"), "runs": runs}))


def _give_up_privileges() -> None:
    """Let root be refused what any user would be: this thread, and those that it starts, lose CAP_DAC_*."""
    if os.geteuid():
        return
    libc = ctypes.CDLL(None)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    sets[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0


if __name__ == "__main__":
    play: dict[str, Callable[..., None]] = {"decode": _decode, "damage": _damage, "compare": _compare, "embed": _embed}
    play[sys.argv[1]](*sys.argv[2:])
