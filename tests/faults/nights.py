"""Nights of ``penult retrain``: a month in which everything happens, and kills at every step of a night.

After each night the decision is worked out anew, from the stored vectors and by the rule as the README says it. A month
with kills and retries leaves the history of a month without them.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import math
import random
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from conftest import CountingEngine
from faults import Faults, invariant
from faults.jobs import PATIENCE, Job, child
from featurestore import aliases
from heads import artifact
from pipelines.embedding import worker
from pipelines.retraining import RetrainOptions, retrain

FIRST = datetime.date(2026, 11, 1)
CLASSES = "abcde"
SIDE = 32
TEST_SHARE = 0.15
MISFILED = 3  # every third image of the first night lies in the wrong folder
PER_NIGHT = 4  # new images per class
FIRST_NIGHT = 40
Z = 1.959963984540054  # half a 95 % interval of a normal distribution, in standard deviations
MOST_BYTES = 6_000_000  # of a store after a month, but for its vectors and the arrays of its heads

POINTS = [  # where a night is killed, and at which call
    *(("pipelines.retraining.night:write_sealed", nth) for nth in range(1, 12)),
    *(("featurestore.runs:RunRecord.write", nth) for nth in (1, 2, 3, 4)),
    *(("featurestore.aliases:replace_sealed", nth) for nth in (1, 2)),
    ("featurestore.store:FeatureStore.commit", 1),
    ("featurestore.store:FeatureStore.commit_labels", 1),
    ("pipelines.training:keep", 1),
    ("pipelines.retraining.page:write_page", 1),
    ("pipelines.retraining.retention:delete", 1),
    ("pipelines.retraining.retention:delete", 2),
]


@dataclass(frozen=True)
class Script:
    """What happens on which night, counted from 0; on all others new images come.

    Attributes:
        corrected: people correct a share of the misfiled images.
        corrupt: of the new files 30 % are broken.
        other_kind: the new images are negatives.
        copies: near-copies of test images come into the training split.
        heads: from this night on the recipe compares these heads.
        quiet: nothing happens.
        keep: how many nights the recipe keeps.
        per_night: new images per class.
    """

    nights: int
    corrected: Sequence[int] = ()
    corrupt: Sequence[int] = ()
    other_kind: Sequence[int] = ()
    copies: Sequence[int] = ()
    heads: dict[int, str] = field(default_factory=dict)
    quiet: Sequence[int] = ()
    keep: int = 12
    per_night: int = PER_NIGHT


WEEK = Script(7, corrected=[2], corrupt=[3], copies=[4], heads={0: "knn", 3: "ncm, logreg", 5: "knn"}, quiet=[6])
MONTH = Script(
    30,
    corrected=[4, 9, 15, 22],
    corrupt=[11],
    other_kind=[13],
    copies=[16],
    heads={0: "knn", 20: "ncm, logreg", 25: "knn"},
    quiet=[7, 27],
)


class World:
    """A corpus that grows, its labels, and the recipe of its nights; the same script makes the same world."""

    def __init__(self, folder: Path, script: Script) -> None:
        self.folder, self.script, self.recipe = folder, script, folder / "nightly.toml"
        self.labels: dict[Path, str] = {}  # as they count
        self.truth: dict[Path, str] = {}
        self.broken: set[Path] = set()
        self._left = {name: list(scans) for name, scans in zip(CLASSES, _scans(), strict=True)}
        (folder / "labels").mkdir(parents=True)

    def turn(self, night: int) -> datetime.date:
        """Let a night's events happen; return its date."""
        date, script = FIRST + datetime.timedelta(night), self.script
        if night in script.heads:
            heads = ", ".join(f'"{name.strip()}"' for name in script.heads[night].split(","))
            self.recipe.write_text(RECIPE.format(heads=heads, keep=script.keep))
        if night not in script.quiet:
            self._arrive(night, FIRST_NIGHT if night == 0 else script.per_night)
        if night in script.copies:
            self._copy()
        if night in script.corrected:
            self._correct(date)
        return date

    def _arrive(self, night: int, per_class: int) -> None:
        number = 0
        for name in CLASSES:
            for _ in range(per_class):
                pixels = self._left[name].pop()
                number += 1
                wrong = night == 0 and number % MISFILED == 0
                label = CLASSES[(CLASSES.index(name) + 1) % len(CLASSES)] if wrong else name
                data = _png(255 - pixels if night in self.script.other_kind else pixels)
                is_broken = night in self.script.corrupt and number % 10 < 3
                path = self._write(label, f"{night:02}-{number:03}", data[: len(data) // 2] if is_broken else data)
                if is_broken:
                    self.broken.add(path)
                else:
                    self.labels[path], self.truth[path] = label, name

    def _copy(self) -> None:
        """Add images that differ from a test image by one grey value, each in the training split."""
        test = [path for path in sorted(self.labels) if _place(path.read_bytes()) < TEST_SHARE]
        for path in test[:5]:
            pixels = np.asarray(Image.open(path)).copy()
            for value in range(1, 200):
                pixels[0, 0] = value
                if 0.2 < _place(_png(pixels)) < 0.8:
                    break
            copy = self._write(self.labels[path], f"copy-{path.stem}", _png(pixels))
            self.labels[copy], self.truth[copy] = self.labels[path], self.truth[path]

    def _correct(self, date: datetime.date) -> None:
        wrong = sorted(path for path, label in self.labels.items() if label != self.truth[path])
        rows = wrong[: max(1, len(wrong) // 2)]
        self.labels |= {path: self.truth[path] for path in rows}
        lines = [f"{path.as_uri()},{self.truth[path]}" for path in rows]
        (self.folder / "labels" / f"{date}.csv").write_text("\n".join(["uri,label", *lines]))

    def _write(self, label: str, name: str, data: bytes) -> Path:
        path = self.folder / "photos" / label / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def check(self, store: Path) -> None:
        """The store holds exactly these images, once each, with these labels."""
        contents: dict[str, bytes | str] = {path.as_uri(): path.read_bytes() for path in self.labels}
        contents |= {path.as_uri(): "truncated" for path in self.broken}
        labels = {path.as_uri(): label for path, label in self.labels.items()}
        labels |= {path.as_uri(): path.parent.name for path in self.broken}
        invariant.check(store, contents, labels=labels)


RECIPE = """
[source]
location = "photos"

[labels]
file = "labels/{{date}}.csv"

[compare]
heads = [{heads}]

[promote]
rule = "better"

[keep]
runs = {keep}
"""


def simulated(folder: Path, script: Script, kills: int | None = None, engine: str = "real") -> list[dict[str, Any]]:
    """Play a script; with ``kills``, a seed, some nights are killed and run again. Return what each night came to."""
    world, store = World(folder, script), folder / "store"
    draw = None if kills is None else random.Random(kills)
    outcomes: list[dict[str, Any]] = []
    with _engine(engine):
        for night in range(script.nights):
            date, before = world.turn(night), aliases.resolve(store, aliases.CHAMPION)
            if draw is not None and (draw.random() < 0.3 or night == 1):
                point, nth = draw.choice(POINTS)
                killed(
                    world, store, date, ["--at", point, draw.choice(["before", "after"]), str(nth), "SIGKILL"], engine
                )
            outcome = retrain(world.recipe, store, RetrainOptions(date=date))
            explained(world, store, outcome, before)
            again = retrain(world.recipe, store, RetrainOptions(date=date))
            assert again == outcome | {"repeated": True}, f"{date} was done twice: {again}"
            outcomes.append(outcome)
    world.check(store)
    promoted = [outcome["challenger"]["head_id"] for outcome in outcomes if outcome["decision"] == "promoted"]
    moved = [move.head_id for move in aliases.history(store, aliases.CHAMPION)]
    assert moved == promoted, f"the champion moved to {moved}; promoted were {promoted}"
    assert sum(outcome["embed"]["embedded"] for outcome in outcomes) == len(world.labels)
    files = [path for path in store.rglob("*") if path.is_file() and "features" not in path.parts]
    rest = sum(path.stat().st_size for path in files if path.name != "head.npz")
    assert rest < MOST_BYTES, f"{rest:,} bytes after {script.nights} nights"
    heads = [path for path in files if path.name == "head.npz" and "results" not in path.parts]  # gc bounds those there
    assert len(heads) <= script.keep + len(promoted), f"{len(heads)} heads after {script.nights} nights"
    return outcomes


def killed(
    world: World, store: Path, date: datetime.date, at: Sequence[str], engine: str, seconds: float | None = None
) -> bool:
    """Begin a night in a process that is killed, ``at`` a point or after ``seconds``; return whether it was."""
    command = ["retrain", str(world.recipe), "--store", str(store), "--date", str(date), "--json"]
    with child(Job("retrain", store, command, {}, {}, engine=engine), at) as process:
        said = ""
        try:
            _, said = process.communicate(timeout=seconds or PATIENCE)
        except subprocess.TimeoutExpired:
            assert seconds, f"{date}: it did not end within {PATIENCE} s"
    assert process.returncode in (0, -signal.SIGKILL), f"{date}: exit code {process.returncode}: {said}"
    if (store / "penult.json").exists():
        invariant.sound(store)
    return process.returncode != 0


def explained(world: World, store: Path, outcome: dict[str, Any], before: str | None) -> None:
    """Raise AssertionError unless a night's record says what happened, and its decision is what the rule says."""
    record = json.loads((store / "runs" / outcome["run_id"] / "run.json").read_text())
    assert record["result"]["decision"] == outcome["decision"] and outcome["reason"], outcome
    assert outcome["decision"] in ("promoted", "kept", "unchanged"), outcome
    if outcome["decision"] == "unchanged":
        assert outcome["embed"]["new"] == outcome["embed"]["changed"] == 0
        return
    assert (store / "runs" / outcome["run_id"] / "report.html").stat().st_size > 1000
    if outcome["champion"] is None or before is None:
        return
    assert outcome["champion"]["head_id"] == before
    y, X = tested(world, store)
    right = []
    for who in ("challenger", "champion"):
        head, _ = artifact.load(store / "runs" / outcome[who]["head_id"])
        right.append(head.predict(X) == y)
        assert math.isclose(outcome[who]["score"], float(np.mean(right[-1]))), (who, outcome)
    value, low = better_by(*right)
    assert math.isclose(outcome["difference"]["value"], value, abs_tol=1e-12), outcome
    assert math.isclose(outcome["difference"]["ci"][0], low, abs_tol=1e-9), (outcome["difference"], low)
    promoted = low > 0 and len(y) >= 20
    assert outcome["decision"] == ("promoted" if promoted else "kept"), outcome


def tested(world: World, store: Path) -> tuple[np.ndarray, np.ndarray]:
    """The labels and vectors of the test images, by what the README says of splits, in no particular order."""
    vectors = invariant.stored_vectors(store)
    rows = {path.read_bytes(): label for path, label in world.labels.items()}
    chosen = [(data, label) for data, label in rows.items() if _place(data) < TEST_SHARE]
    X = np.array([vectors[hashlib.sha256(data).hexdigest()] for data, _ in chosen], np.float32)
    return np.array([label for _, label in chosen]), X


def better_by(new: np.ndarray, old: np.ndarray) -> tuple[float, float]:
    """The difference of two accuracies on the same images, and the lower end of its 95 % interval (Bonett & Price)."""
    n, gained, lost = len(new), int(np.sum(new & ~old)), int(np.sum(~new & old))
    a, b = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    return (gained - lost) / n, a - b - Z * math.sqrt((a + b - (a - b) ** 2) / (n + 2))


def history(outcomes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a month came to, without ids, times and places."""
    counted = ("seen", "new", "changed", "unchanged", "embedded", "deduplicated", "failed", "failures", "removed")
    kept = ("date", "decision", "reason", "labels", "difference", "n", "test")
    return [
        {name: outcome[name] for name in kept}
        | {"embed": {name: outcome["embed"][name] for name in counted}}
        | {"checks": [{**check, "images": len(check["images"])} for check in _unplaced(outcome["checks"])]}
        | {who: outcome[who] and outcome[who]["score"] for who in ("champion", "challenger")}
        for outcome in outcomes
    ]


def _unplaced(checks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**check, "reason": check["reason"].split(", such as")[0]} for check in checks]


# --- trials


def month(folder: Path, seed: int) -> None:
    """A month with kills leaves the history of the same month without them."""
    plain = history(simulated(folder / "plain", MONTH))
    with_kills = history(simulated(folder / "killed", MONTH, seed))
    assert with_kills == plain, "kills changed the history"
    assert {"promoted", "kept", "unchanged"} <= {night["decision"] for night in plain}


def year(folder: Path) -> None:
    """After a year of nights a store has no more files than after a hundred, but for what the new images need."""
    script = Script(365, heads={0: "ncm"}, quiet=[night for night in range(365) if night % 3], keep=30, per_night=1)
    world, store, sizes = World(folder, script), folder / "store", {}
    with _engine("fake"):
        for night in range(script.nights):
            retrain(world.recipe, store, RetrainOptions(date=world.turn(night)))
            if night in (100, 364):
                files = [path for path in store.rglob("*") if path.is_file() and "results" not in path.parts]
                sizes[night] = len(files), sum(path.stat().st_size for path in files)
    world.check(store)
    assert sizes[364][0] <= sizes[100][0] + 50, f"files: {sizes}"
    assert sizes[364][1] <= sizes[100][1] + 440 * 1000 + 2_000_000, f"bytes: {sizes}"
    assert len(list((store / "nights").glob("*.json"))) <= 30 + 12, "those that are kept, and those of champions"


def struck(folder: Path, night: int, kill: Callable[..., bool]) -> None:
    """A night that is killed, and run again, comes to what it comes to without the kill.

    ``kill`` takes the world, its store and the date, and returns whether the night was killed before it ended.
    """
    world, store = World(folder, _SHORT), folder / "store"
    outcomes = []
    with _engine("fake"):
        for number in range(night + 1):
            date = world.turn(number)
            if number == night and not kill(world, store, date):
                raise unittest.SkipTest("on this night there were not so many calls")
            outcomes.append(retrain(world.recipe, store, RetrainOptions(date=date)))
    world.check(store)
    plain = history(_unbroken())[: night + 1]
    assert history(outcomes) == plain, f"{history(outcomes)[-1]} is not {plain[-1]}"
    runs = {outcomes[-1]["run_id"], *(outcome["challenger"]["head_id"] for outcome in outcomes)}
    there = {path.name for path in (store / "runs").iterdir() if "-retrain-" in path.name or "-compare-" in path.name}
    assert there == runs, f"runs of no night: {there ^ runs}"


_SHORT = Script(2, corrected=[1], heads={0: "ncm", 1: "ncm, logreg"}, keep=1)


@cache
def _unbroken() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        return simulated(Path(folder).resolve(), _SHORT, engine="fake")


def at_random(world: World, store: Path, date: datetime.date, share: float) -> bool:
    """Kill a night after a share of its time; sooner if it ended before."""
    seconds = share * _night_seconds()[(date - FIRST).days]
    saved = store.with_name("before")
    if store.exists():
        shutil.copytree(store, saved)
    while not killed(world, store, date, [], "fake", seconds):
        seconds *= 0.8
        shutil.rmtree(store)
        if saved.exists():
            shutil.copytree(saved, store)
    return True


@cache
def _night_seconds() -> list[float]:
    """How long the nights of ``_SHORT`` take in processes of their own."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder).resolve() / "world", _SHORT)
        for night in range(_SHORT.nights):
            date = world.turn(night)
            began = time.monotonic()
            killed(world, world.folder / "store", date, [], "fake")
            seconds.append(time.monotonic() - began)
    return seconds


def faults(seed: int, count: int) -> Faults:
    """Every point, before and after, on the first night and on the second; ``count`` random moments; months."""
    for night in (0, 1):
        for point, nth in POINTS:
            for when in ("before", "after"):
                kill = partial(killed, at=["--at", point, when, str(nth), "SIGKILL"], engine="fake")
                yield f"night {night} {when} {point} {nth}", partial(struck, night=night, kill=kill)
    rng = random.Random(seed)
    for number in range(count):
        kill = partial(at_random, share=rng.random())
        yield f"night {number % 2} at a random moment {number}", partial(struck, night=number % 2, kill=kill)
    yield "a year", year
    for number in range(max(1, count // 20)):
        yield f"month {seed + number}", partial(month, seed=seed + number)


# --- pictures and splits


@contextmanager
def _engine(name: str) -> Iterator[None]:
    worker.engine_for.cache_clear()
    counting = CountingEngine(batch_size=8)
    with mock.patch.object(
        worker, "open_engine", (lambda *_a, **_o: counting) if name == "fake" else worker.open_engine
    ):
        yield
    worker.engine_for.cache_clear()


@cache
def _scans() -> list[list[np.ndarray]]:
    """Handwritten digits by class, grey values uint8 (32, 32)."""
    from sklearn.datasets import load_digits

    digits = load_digits(n_class=len(CLASSES))
    grey = np.kron(np.round(digits.images * (255 / 16)).astype(np.uint8), np.ones((4, 4), np.uint8))
    return [list(grey[digits.target == number]) for number in range(len(CLASSES))]


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def _place(data: bytes) -> float:
    """Where an image's content lies between 0 and 1: 53 bits of the BLAKE2b digest of its sha256."""
    digest = hashlib.blake2b(hashlib.sha256(data).digest(), digest_size=8, salt=bytes(8)).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53
