"""Read a legacy PyTorch checkpoint with numpy alone; nothing in the file is ever executed.

The format (torch.save before PyTorch 1.6): three header pickles (magic number, protocol version,
system info), one pickled state dict whose tensors name their storages by key, one pickled list of
those keys, then every storage in that order as an int64 length and its raw little-endian elements.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.errors import BackboneError

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Read the tensors of a state dict, by name.

    Args:
        path: a file in the legacy format, holding one flat state dict.

    Returns:
        Read-only arrays in the dtypes of the file.

    Raises:
        BackboneError: the file is missing, truncated, of another format, or asks for anything but
            tensors.
    """
    try:
        return _read(Path(path).read_bytes())
    except OSError as error:
        raise BackboneError(f"The weights file {path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # a hostile pickle may raise anything
        raise BackboneError(
            f"{path} is damaged or no legacy PyTorch state dict ({error}): use the file as it was published."
        ) from error


@dataclass(frozen=True)
class _Tensor:
    """A tensor whose storage is still to be read; offset and strides count elements."""

    storage: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Admits an ordered dict, storage types and tensors; refuses every other name."""

    def __init__(self, file: BytesIO) -> None:
        super().__init__(file)
        self.dtypes: dict[str, str] = {}  # of the storages met so far, by key

    def find_class(self, module: str, name: str) -> Callable[..., Any] | str:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, shape, strides)
        if module == "torch" and name in STORAGES:
            return STORAGES[name]  # a plain string: a pickle can do nothing with it
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: tuple[str, str, str, str, int, None]) -> str:
        kind, dtype, key, _device, _length, view = pid
        if kind != "storage" or view is not None:
            raise pickle.UnpicklingError("it holds more than tensors")
        self.dtypes[key] = dtype
        return key


def _read(content: bytes) -> dict[str, np.ndarray]:
    file = BytesIO(content)
    if _Unpickler(file).load() != MAGIC or _Unpickler(file).load() != PROTOCOL:
        raise ValueError("wrong magic number")
    if not _Unpickler(file).load()["little_endian"]:
        raise ValueError("big-endian")
    unpickler = _Unpickler(file)
    tensors = unpickler.load()
    keys = _Unpickler(file).load()

    storages = {}
    position = file.tell()
    for key in keys:
        dtype = np.dtype(unpickler.dtypes[key])
        length = int(np.frombuffer(content, "<i8", count=1, offset=position)[0])
        if length < 0:
            raise ValueError("a storage of negative length")
        storages[key] = np.frombuffer(content, dtype, count=length, offset=position + 8)
        position += 8 + length * dtype.itemsize
    if position != len(content):
        raise ValueError(f"Expected: {position} bytes. Got: {len(content)}")
    return {name: _view(tensor, storages[tensor.storage]) for name, tensor in tensors.items()}


def _view(tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    """Return the tensor as a read-only view of its storage; raise ValueError if it reaches outside."""
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    if min((tensor.offset, *tensor.shape, *tensor.strides)) < 0 or last >= len(storage):
        raise ValueError("a tensor outside its storage")
    return np.lib.stride_tricks.as_strided(
        storage[tensor.offset :],
        tensor.shape,
        [stride * storage.itemsize for stride in tensor.strides],
        writeable=False,
    )
