"""Nights as a scheduler starts them: processes with a bare environment, signals, time limits, locks."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_retrain import LEAST, World

from conftest import ROOT, CountingEngine
from faults.jobs import PATIENCE, Job, child
from featurestore.errors import StoreLocked
from featurestore.storage.lock import locked
from featurestore.store import FeatureStore
from pipelines.retraining import RetrainOptions, retrain
from pipelines.retraining.night import night_lock

DAY = datetime.date(2026, 11, 1)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def struck(world: World, words: Sequence[str] = (), at: Sequence[str] = ()) -> tuple[int, str, str]:
    """Run a night in a process with a counting engine, perhaps struck by a signal; exit code, stdout, stderr."""
    command = ["retrain", str(world.recipe), "--store", str(world.store), "--date", str(DAY), "--json", *words]
    with child(Job("retrain", world.store, command, {}, {}), ["--at", *at] if at else []) as process:
        out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def test_nothing_that_a_scheduler_leaves_out_is_missed(world: World, tmp_path: Path) -> None:
    world.add(12)
    environment = {name: os.environ[name] for name in ("PYTHONPATH", "PENULT_CACHE") if name in os.environ}
    environment |= {"LANG": "C", "PATH": "/usr/bin:/bin", "PENULT_STORE": str(world.store)}
    script = (
        f"umask 077; cd /proc; exec {sys.executable} -m pipelines retrain {world.recipe} --log-format json --json <&-"
    )
    done = subprocess.run(
        ["/bin/sh", "-c", script], env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["decision"] in ("promoted", "kept")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert lines and all(line["level"] in ("info", "warning") and line["time"].endswith("+00:00") for line in lines)
    assert any(line.get("message", "").startswith(json.loads(done.stdout)["date"]) for line in lines)


def test_sigterm_ends_the_shard_and_the_next_start_goes_on(world: World) -> None:
    world.add(8)
    world.write(LEAST + "\n[embed]\nshard_images = 8\n")
    code, out, err = struck(world, at=["pipelines.embedding.worker:embed_shard", "after", "1", "SIGTERM"])
    assert (code, out) == (128 + signal.SIGTERM, "")
    assert err.splitlines()[-1] == (
        "penult: Interrupted; what was finished is kept, the same command goes on from there."
    )
    kept = FeatureStore(world.store).catalog.count()
    assert 8 <= kept < 24
    code, out, _ = struck(world)
    told = json.loads(out.splitlines()[-1])
    assert code == 0 and {name: told["embed"][name] for name in ("seen", "embedded", "new", "unchanged", "failed")} == {
        "seen": 24,
        "embedded": 24,
        "new": 24,
        "unchanged": 0,
        "failed": 0,
    }


def test_a_time_limit_ends_the_night_with_code_1(world: World) -> None:
    world.add(8)
    code, out, err = struck(world, ["--timeout", "0.001s"])
    assert (code, out) == (1, "") and "Out of time (--timeout" in err.splitlines()[-1]
    assert struck(world, ["--timeout", "10min"])[0] == 0


@contextmanager
def held(lock: object) -> Iterator[threading.Timer]:
    """Hold a lock until a timer has run out, or the block ends."""
    over, begun = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:  # type: ignore[attr-defined]
            begun.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait()
    timer = threading.Timer(1.0, over.set)
    yield timer
    over.set()
    timer.cancel()
    thread.join()


@pytest.mark.parametrize("which", [locked, night_lock], ids=["a run", "a night"])
def test_a_locked_store_is_code_75_or_waited_for(which: object, world: World, engine: CountingEngine) -> None:
    world.add(8)
    FeatureStore.create(world.store)
    with held(which(world.store)) as timer:  # type: ignore[operator]
        with pytest.raises(StoreLocked) as caught:
            retrain(world.recipe, world.store, RetrainOptions(date=DAY))
        assert caught.value.exit_code == 75
        timer.start()
        told = retrain(world.recipe, world.store, RetrainOptions(date=DAY, wait=60.0))
    assert told["decision"] in ("promoted", "kept")


def test_a_quiet_night_starts_no_heavy_library(world: World, engine: CountingEngine) -> None:
    world.add(8)
    retrain(world.recipe, world.store, RetrainOptions(date=DAY))
    script = (
        "import sys; from pipelines.__main__ import main; import atexit\n"
        "heavy = ('tensorflow', 'apache_beam', 'keras', 'sklearn', 'openvino', 'heads.monitoring.drift')\n"
        "atexit.register(lambda: print([name for name in heavy if name in sys.modules]))\n"
        f"sys.argv[1:] = ['retrain', {str(world.recipe)!r}, '--store', {str(world.store)!r}, '--date', '2026-11-02']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "2026-11-02: unchanged. Nothing has changed since the night of 2026-11-01." in done.stderr
    assert done.stdout.splitlines() == ["[]"]
