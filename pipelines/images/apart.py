"""Decode in a child process, where an image that ends the process which decodes it takes only the child with it.

A crash of a decoder or the kernel's end to a process that takes too much memory leaves no error to catch. Shards in
which a worker died are tried again with this, which is slower.

The child reads requests and writes answers: a line of JSON, and the bytes whose number it tells.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from typing import IO, Any

import numpy as np

from featurestore.errors import ImageError
from featurestore.spec import Preprocessing
from pipelines.images import decoder


class Apart:
    """A child process that decodes, one image at a time, until it is closed; threads may share it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._asking = threading.Lock()

    def decode(self, data: bytes, seen: Preprocessing) -> decoder.Picture:
        """Decode as ``decoder.decode`` does.

        Raises:
            ImageError: as there; or "crashed", if the child has died of the image.
        """
        told, pixels = self._asked(asdict(seen), data)
        square = np.frombuffer(pixels, np.uint8).reshape(seen.input_size, seen.input_size, 3)
        return decoder.Picture(square, told["width"], told["height"], told["format"])

    def measure(self, data: bytes) -> tuple[int, int, str]:
        """Measure as ``decoder.measure`` does; raise what ``decode`` raises."""
        told, _ = self._asked({}, data)
        return told["width"], told["height"], told["format"]

    def close(self) -> None:
        """End the child; nobody may be asking any more."""
        if self._child is not None:
            self._child.communicate()
            self._child = None

    def _asked(self, what: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        with self._asking:
            child = self._child = self._child or _started()
            assert child.stdin and child.stdout
            try:
                _send(child.stdin, what, data)
                told, answer = _received(child.stdout)
            except (OSError, EOFError):
                self._child = None
                with contextlib.suppress(OSError):  # what was not sent
                    child.stdin.close()
                child.stdout.close()
                code = child.wait()
                how = signal.Signals(-code).name if code < 0 else f"code {code}"
                raise ImageError(
                    "crashed", f"Decoding it ended the process that did so ({how}): save the image anew, as a PNG."
                ) from None
        if "error" in told:
            raise ImageError(told["error_type"], told["error"])
        return told, answer


def _started() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipelines.images.apart"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _send(pipe: IO[bytes], told: dict[str, Any], data: bytes) -> None:
    pipe.write(json.dumps(told | {"bytes": len(data)}).encode() + b"\n")
    pipe.write(data)
    pipe.flush()


def _received(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    told = json.loads(pipe.readline() or b"null")
    if told is None:
        raise EOFError
    data = pipe.read(told.pop("bytes"))
    return told, data


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until there are no more: the child's part."""
    with contextlib.suppress(EOFError):
        while True:
            asked, data = _received(requests)
            try:
                if asked:
                    picture = decoder.decode(data, Preprocessing(**asked))
                    told, pixels = (picture.width, picture.height, picture.format), picture.pixels.tobytes()
                else:
                    told, pixels = decoder.measure(data), b""
                _send(answers, dict(zip(("width", "height", "format"), told, strict=True)), pixels)
            except ImageError as error:
                _send(answers, {"error_type": error.error_type, "error": str(error)}, b"")


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it ends with its parent, which closes the pipe
    serve(sys.stdin.buffer, sys.stdout.buffer)
