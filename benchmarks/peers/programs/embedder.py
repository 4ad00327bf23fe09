"""What every peer computes, and how every program is called: it needs OpenVINO, simplejpeg, Pillow and numpy only.

The pixels are those of penult: a whole JPEG by simplejpeg, Pillow's antialiased BILINEAR to 224 × 224 pixels of the
whole rectangle ("squash") or of its largest central square ("center"). So are the graph and how it is compiled.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino  # noqa: E402

BATCH = 8  # images per forward pass, penult's own
SIDE = 224  # pixels
WIDTH = 1280  # numbers per image
COUNT = "PENULT_PEERS_COUNT"  # names a file with a line for each batch: the process, and how many images it computed


class Embedder:
    """JPEG files → features; safe to call from several threads.

    Args:
        graph: OpenVINO's IR, from uint8 (n, 224, 224, 3) to float32 (n, 1280).
        crop: "squash" or "center".
        threads: of the engine; 0 takes all cores.
        batch: images per forward pass.
        hint: OpenVINO's performance hint.
    """

    def __init__(
        self, graph: str, crop: str = "squash", threads: int = 0, batch: int = BATCH, hint: str = "THROUGHPUT"
    ) -> None:
        self.crop, self.batch = crop, batch
        core = openvino.Core()
        model = core.read_model(graph)
        model.reshape([batch, SIDE, SIDE, 3])
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": hint,
            "ENABLE_CPU_PINNING": False,
        }
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        self._compiled = core.compile_model(model, "CPU", config)
        self._own = threading.local()
        self._forward(np.zeros((batch, SIDE, SIDE, 3), np.uint8))  # the first tensor, before there are threads

    def __call__(self, files: Sequence[bytes], crop: str | None = None) -> np.ndarray:
        """Return float32 (n, 1280); raise ValueError at a damaged file."""
        features = np.empty((len(files), WIDTH), np.float32)
        for start in range(0, len(files), self.batch):
            some = files[start : start + self.batch]
            pixels = np.zeros((self.batch, SIDE, SIDE, 3), np.uint8)
            for index, data in enumerate(some):
                pixels[index] = decode(data, crop or self.crop)
            features[start : start + len(some)] = self._forward(pixels)[: len(some)]
            count(len(some))
        return features

    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        self._own.request.infer([pixels], share_inputs=True)
        return np.asarray(self._own.request.get_output_tensor().data)


def decode(data: bytes, crop: str = "squash") -> np.ndarray:
    """Return uint8 (224, 224, 3)."""
    pixels = simplejpeg.decode_jpeg(data, colorspace="RGBX")
    height, width, _ = pixels.shape
    image = Image.frombuffer("RGBX", (width, height), pixels, "raw", "RGBX", 0, 1)  # no copy, as RGB would be
    box = None
    if crop == "center":
        short = min(width, height)
        box = ((width - short) / 2, (height - short) / 2, (width + short) / 2, (height + short) / 2)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box))[:, :, :3]


def count(images: int) -> None:
    """Note that this process has computed some images, if somebody asks."""
    if path := os.environ.get(COUNT):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{os.getpid()} {images}\n".encode())
        os.close(file)


def files_of(corpus: str) -> list[str]:
    """Paths of all JPEG files, sorted."""
    return sorted(str(path) for path in Path(corpus).rglob("*.jpg"))


def program(
    embed: Callable[[argparse.Namespace], None], rows: Callable[[argparse.Namespace], Iterable[tuple[str, np.ndarray]]]
) -> None:
    """The command line that all programs have.

    ``embed CORPUS GRAPH OUTPUT`` computes; ``dump OUTPUT FILE`` reads the output as the library does, and writes what
    is there for the check: names (n,) and vectors float32 (n, 1280) in a .npz file.
    """
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("embed")
    dump = commands.add_parser("dump")
    for name in ("corpus", "graph", "output"):
        run.add_argument(name)
    for name in ("output", "file"):
        dump.add_argument(name)
    for command in (run, dump):
        command.add_argument("--crop", choices=["squash", "center"], default="squash")
    run.add_argument("--checkpoint", action="store_true")
    arguments = parser.parse_args()
    if arguments.command == "embed":
        embed(arguments)
        return
    found = list(rows(arguments))
    names = np.array([Path(path).name for path, _ in found], str)
    vectors = np.array([vector for _, vector in found], np.float32).reshape(len(found), -1)
    np.savez(arguments.file, names=names, vectors=vectors)
