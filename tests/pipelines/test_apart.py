"""Decoding in a child process: the same pixels and errors, and a child that dies takes one image with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from clusters import until
from conftest import write_picture
from featurestore.errors import ImageError
from featurestore.spec import Preprocessing
from pipelines.images import apart, decoder

SEEN = Preprocessing(24, "lite")


@pytest.fixture
def by() -> Iterator[apart.Apart]:
    with contextlib.closing(apart.Apart()) as children:
        yield children


@pytest.fixture
def pictures(tmp_path: Path) -> list[bytes]:
    canary = Path(decoder.__file__).parents[1] / "backbones"
    small = [write_picture(tmp_path / f"{number}.png", number).read_bytes() for number in range(3)]
    return [*small, (canary / "canary.jpg").read_bytes(), (canary / "canary.png").read_bytes()]


@pytest.mark.parametrize(
    "seen", [SEEN, replace(SEEN, crop="center"), Preprocessing(24, "x", "shortest", "pillow-bicubic", crop_ratio=0.7)]
)
def test_it_decodes_and_measures_as_in_this_process(
    pictures: list[bytes], seen: Preprocessing, by: apart.Apart
) -> None:
    for data in pictures:
        one, other = decoder.decode(data, seen), by.decode(data, seen)
        assert (one.pixels == other.pixels).all() and other.pixels.dtype == one.pixels.dtype
        assert (one.width, one.height, one.format) == (other.width, other.height, other.format)
        assert by.measure(data) == decoder.measure(data)


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_its_errors_are_those_of_this_process(data: bytes, by: apart.Apart) -> None:
    for ours, theirs in (
        (lambda: decoder.decode(data, SEEN), lambda: by.decode(data, SEEN)),
        (lambda: decoder.measure(data), lambda: by.measure(data)),
    ):
        with pytest.raises(ImageError) as here:
            ours()
        with pytest.raises(ImageError) as there:
            theirs()
        assert (here.value.error_type, str(here.value)) == (there.value.error_type, str(there.value))


def test_a_child_that_dies_is_the_images_fault_and_the_next_image_gets_another(
    pictures: list[bytes], by: apart.Apart
) -> None:
    first, second = pictures[:2]
    by.decode(first, SEEN)
    child = by._child
    timer = threading.Timer(0.2, child.kill)
    os.kill(child.pid, signal.SIGSTOP)  # so that it dies while it has the image
    timer.start()
    with pytest.raises(ImageError, match=r"^Decoding it ended the process that did so \(SIGKILL\): ") as died:
        by.decode(second, SEEN)
    assert died.value.error_type == "crashed"
    assert (by.decode(second, SEEN).pixels == decoder.decode(second, SEEN).pixels).all()
    assert by._child.pid != child.pid


def test_its_children_end_with_it(pictures: list[bytes]) -> None:
    with contextlib.closing(apart.Apart()) as children:
        children.measure(pictures[0])
        child = children._child
        assert child.poll() is None
    assert child.poll() == 0


def test_a_child_ends_by_itself_when_its_parent_has_died(tmp_path: Path, pictures: list[bytes]) -> None:
    code = f"""
import os
from pipelines.images.apart import Apart
children = Apart()
children.measure({pictures[0]!r})
print(children._child.pid, flush=True)
os._exit(7)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 7
    until(lambda: not Path(f"/proc/{int(done.stdout)}").exists())
