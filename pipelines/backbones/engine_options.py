"""How a backbone is to be run: the engine, its precision and its batch, as they are asked for and checked.

The command line is made from it, so it needs no library that computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from featurestore.errors import UsageError
from featurestore.limits import check_count
from featurestore.options import Option
from pipelines.backbones import MAX_INPUT_SIZE

# Small ones stay in a core's cache, large ones fill a GPU.
BATCH_SIZES = {"openvino": 8, "tensorflow": 64, "onnxruntime": 8}
ENGINES = tuple(BATCH_SIZES)
PRECISIONS = ("f32", "bf16")
# Per forward pass: its activations take some hundred bytes per pixel, and more in training.
MAX_BATCH_PIXELS = BATCH_SIZES["openvino"] * MAX_INPUT_SIZE**2


@dataclass(frozen=True)
class EngineOptions:
    """Which engine runs a backbone, and how.

    Only ``precision`` is part of a feature set's identity: the rest changes features by no more than float noise.
    """

    engine: Annotated[str, Option("openvino (CPU), tensorflow (anywhere) or onnxruntime (added .onnx).")] = "openvino"
    precision: Annotated[str, Option("f32, or bf16 where the CPU has it: another feature set.")] = "f32"
    batch_size: Annotated[int | None, Option("Images per forward pass; by default the engine's own.")] = None

    def images_per_pass(self, input_size: int) -> int:
        """Return the batch size that was asked for, else the engine's own for squares of this many pixels per side."""
        if self.batch_size is not None:
            return self.batch_size
        return min(BATCH_SIZES[self.engine], MAX_BATCH_PIXELS // input_size**2)


def check_request(options: EngineOptions, input_size: int) -> None:
    """Check the options of an engine before it is opened.

    Args:
        options: engine, precision and batch size.
        input_size: pixels, the side of the square that the backbone sees.

    Raises:
        UsageError: an unknown engine or precision, or a batch too large for memory.
    """
    check_engine(options.engine)
    if options.precision not in PRECISIONS:
        raise UsageError(f"Expected: --precision {' or '.join(PRECISIONS)}. Got: {options.precision!r}.")
    if options.batch_size is not None:
        check_batch(options.batch_size, input_size)


def check_engine(name: str) -> None:
    """Raise UsageError if there is no engine of this name."""
    if name not in ENGINES:
        raise UsageError(f"Expected: --engine {' or '.join(ENGINES)}. Got: {name!r}.")


def check_batch(batch_size: int, input_size: int) -> None:
    """Raise UsageError for a batch size below 1, or a batch of more than ``MAX_BATCH_PIXELS`` pixels."""
    option = f"--batch-size at {input_size} pixels, where a batch has to fit in memory"
    check_count(option, batch_size, 1, MAX_BATCH_PIXELS // input_size**2)
