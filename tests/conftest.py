"""Shared fixtures: small real images, and a fake engine that counts its calls."""

from __future__ import annotations

import gc
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest
from decoding import decoded
from hypothesis import settings
from PIL import Image

import object_servers
from featurestore.spec import CROPS
from featurestore.storage.base import location
from featurestore.storage.objects import ObjectStorage
from heads.evaluation import learning_curve
from object_servers import ObjectServer
from pipelines import commands
from pipelines.backbones import canary
from pipelines.embedding import worker

ROOT = Path(__file__).parents[1]
# Processes that tests start in this folder must not take tests/featurestore for the package of that name.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
MEMORY = "/dev/shm"
if "TMPDIR" not in os.environ and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4 * 2**30:
    # a commit waits for the disk a dozen times; what a power cut would leave is tested from a trace of the system calls
    os.environ["TMPDIR"] = tempfile.tempdir = MEMORY
settings.register_profile("penult", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("penult")

metadata.version = cache(metadata.version)  # a run records two dozen, and reads a file for each


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Collect without the garbage collector: what is made stays, and is never looked at again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First signals, to a process in which no other library has run; then the wheel's demo, which cannot be split.

    Without what would run in a bucket and has no mark for it.
    """
    items[:] = [item for item in items if _place(item) != "s3" or item.get_closest_marker("everywhere")]
    first = ("test_signals.py", "test_wheel.py")
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))


def _place(item: pytest.Item) -> object:
    return (
        item.callspec.params.get("place") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else None
    )


class CountingEngine:
    """Block means of the pixels: 12 numbers that tell pictures apart, at no cost; counts what it is asked.

    Batches that begin with the built-in picture of ``pipelines.backbones.canary`` are counted as ``canaries``, and not
    among the images.
    """

    width = 12

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.images = self.canaries = 0

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        assert pixels.dtype == np.uint8 and len(pixels) <= self.batch_size
        if pixels[0].tobytes() in first_canary(pixels.shape[1]):
            self.canaries += 1
        else:
            self.images += len(pixels)
        n, side = len(pixels), pixels.shape[1]
        blocks = pixels.reshape(n, 2, side // 2, 2, side // 2, 3).mean(axis=(2, 4))
        return (blocks.reshape(n, 12) / 255).astype(np.float32)


@cache
def first_canary(side: int) -> set[bytes]:
    """The pixels of the first built-in picture, by every crop rule."""
    data = (Path(canary.__file__).parent / canary.PICTURES[0]).read_bytes()
    return {decoded(data, side, crop).pixels.tobytes() for crop in CROPS}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> CountingEngine:
    """Replace the CNN by a counting engine, in this process."""
    counting = CountingEngine(batch_size=8)
    monkeypatch.setattr(worker, "open_engine", lambda *_args, **_options: counting)
    worker.engine_for.cache_clear()
    yield counting
    worker.engine_for.cache_clear()


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[ObjectServer]:
    """A running SeaweedFS, one for all tests of this process."""
    with object_servers.seaweedfs() as server:
        yield server


@pytest.fixture(scope="session")
def shared_bucket(seaweedfs: ObjectServer) -> str:
    """A bucket for all tests of this process: its server takes half a second to make another one."""
    return seaweedfs.make_bucket()


@pytest.fixture
def bucket(seaweedfs: ObjectServer, shared_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The name of a bucket and a prefix in it below which nothing is; the usual variables lead to its server."""
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "copies"))
    return f"{shared_bucket}/{secrets.token_hex(8)}"


@pytest.fixture
def bucket_place(
    seaweedfs: ObjectServer, shared_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> PurePath:
    """Where nothing is yet in a bucket, for a store; what is old is removed at once, as on a disk."""
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "copies"))
    monkeypatch.setattr(ObjectStorage, "grace", timedelta(0))
    return location(f"s3://{shared_bucket}/{secrets.token_hex(8)}/store")


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> PurePath:
    """Where nothing is yet, for a store: on a disk and, for tests with the mark ``everywhere``, in a bucket."""
    return tmp_path / "store" if request.param == "disk" else request.getfixturevalue("bucket_place")


@pytest.fixture
def run(tmp_path: Path, engine: CountingEngine, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command on ``tmp_path/store`` with the counting engine; return its JSON."""

    def command(*arguments: object) -> Any:
        commands.app([*map(str, arguments), "--store", str(tmp_path / "store"), "--json"], standalone_mode=False)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return command


@pytest.fixture(scope="module")
def few_resamples() -> Iterator[None]:
    """A rough interval of the learning curve's end, which takes most of a small comparison's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning_curve, "RESAMPLES", 5)
        yield


def write_picture(path: Path, number: int, side: int = 16) -> Path:
    """A small PNG whose content depends on ``number`` alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Thirty different images in three class folders."""
    for number in range(30):
        write_picture(tmp_path / "corpus" / "abc"[number % 3] / f"{number:02}.png", number)
    return tmp_path / "corpus"
