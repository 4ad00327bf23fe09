import io
import pickle
import struct
import sys
from collections import OrderedDict
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from featurestore.errors import BackboneError
from pipelines.backbones.torchfile import MAGIC, PROTOCOL, STORAGES, read_state_dict

# Stand-ins under torch's names: enough for pickle to write what torch.save would.
torch, torch_utils = ModuleType("torch"), ModuleType("torch._utils")
for storage_name in STORAGES:
    setattr(torch, storage_name, type(storage_name, (), {"__module__": "torch"}))


def _rebuild_tensor_v2():
    raise AssertionError("only its name is written")


_rebuild_tensor_v2.__module__ = "torch._utils"
torch_utils._rebuild_tensor_v2 = _rebuild_tensor_v2
NAMES = {np.dtype(dtype): name for name, dtype in STORAGES.items()}


class Tensor:
    def __init__(self, array, offset=0, shape=None):
        self.array, self.offset, self.shape = array, offset, shape or array.shape

    def __reduce__(self):
        strides = tuple(stride // self.array.itemsize for stride in self.array.strides)
        return _rebuild_tensor_v2, (self, self.offset, self.shape, strides, False, OrderedDict())


class Pickler(pickle.Pickler):
    """Writes a tensor met inside itself as the reference to its storage."""

    def __init__(self, file):
        super().__init__(file, protocol=2)
        self.open, self.arrays = set(), {}

    def persistent_id(self, item):
        if not isinstance(item, Tensor):
            return None
        key = str(id(item))
        if key not in self.open:
            self.open.add(key)
            return None
        self.arrays[key] = item.array
        kind = getattr(torch, NAMES[item.array.dtype])
        return ("storage", kind, key, "cpu", item.array.size, None)


def write(path, state, *, magic=MAGIC, info=None, tail=b""):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", torch)
        patch.setitem(sys.modules, "torch._utils", torch_utils)
        file = io.BytesIO()
        for header in (magic, PROTOCOL, info or {"little_endian": True}):
            pickle.dump(header, file, protocol=2)
        pickler = Pickler(file)
        pickler.dump(state)
    pickle.dump(list(pickler.arrays), file, protocol=2)
    for array in pickler.arrays.values():
        file.write(struct.pack("<q", array.size) + array.tobytes(order="A"))
    path.write_bytes(file.getvalue() + tail)
    return path


numbers = hnp.arrays(
    st.sampled_from(sorted(NAMES, key=str)),
    hnp.array_shapes(min_dims=0, max_dims=4, max_side=4),
)


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=9), numbers, max_size=5), st.sampled_from("CF"))
def test_reads_back_what_was_written(tmp_path_factory, arrays, order):
    arrays = {name: np.array(array, order=order) for name, array in arrays.items()}
    path = tmp_path_factory.getbasetemp() / "state.pth"
    write(path, OrderedDict((name, Tensor(array)) for name, array in arrays.items()))
    read = read_state_dict(path)
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return eval, (f"open({str(self.path)!r}, 'w')",)


@pytest.mark.parametrize("place", ["magic", "info", "state", "inside"])
def test_code_in_the_pickle_never_runs(tmp_path, place):
    trace = tmp_path / "ran"
    hostile = Hostile(trace)
    options = {place: hostile} if place in ("magic", "info") else {}
    state = {"state": hostile, "inside": OrderedDict(a=hostile)}.get(place, OrderedDict())
    path = write(tmp_path / "hostile.pth", state, **options)
    with pytest.raises(BackboneError, match=r"hostile\.pth is damaged.*eval"):
        read_state_dict(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(hostile)).close()
    assert trace.exists(), "the trap itself must work"


@pytest.fixture
def small(tmp_path):
    return write(tmp_path / "small.pth", OrderedDict(a=Tensor(np.arange(6.0)), b=Tensor(np.arange(4))))


def test_every_truncation_is_refused(small, tmp_path):
    content = small.read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut.pth").write_bytes(content[:length])
        with pytest.raises(BackboneError, match=r"cut\.pth is damaged"):
            read_state_dict(tmp_path / "cut.pth")


def test_other_damage_is_refused(small, tmp_path):
    with pytest.raises(BackboneError, match=r"Expected: .* bytes"):
        read_state_dict(write(tmp_path / "long.pth", OrderedDict(a=Tensor(np.arange(3.0))), tail=b"x"))
    with pytest.raises(BackboneError, match="magic"):
        read_state_dict(write(tmp_path / "magic.pth", OrderedDict(), magic=1))
    with pytest.raises(BackboneError, match="big-endian"):
        read_state_dict(write(tmp_path / "big.pth", OrderedDict(), info={"little_endian": False}))
    for tensor in (Tensor(np.arange(6.0), shape=(7,)), Tensor(np.arange(6.0), offset=1), Tensor(np.arange(6.0), -1)):
        with pytest.raises(BackboneError, match="outside its storage"):
            read_state_dict(write(tmp_path / "outside.pth", OrderedDict(a=tensor)))
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(BackboneError, match=r"text\.pth"):
        read_state_dict(tmp_path / "text.pth")
    with pytest.raises(BackboneError, match=r"missing\.pth cannot be read"):
        read_state_dict(tmp_path / "missing.pth")


def headers(magic=MAGIC, protocol=PROTOCOL):
    return b"".join(pickle.dumps(part, protocol=2) for part in (magic, protocol, {"little_endian": True}))


def refused(tmp_path, content, words):
    path = tmp_path / "odd.pth"
    path.write_bytes(content)
    with pytest.raises(BackboneError, match=words) as caught:
        read_state_dict(path)
    start = f"{path} is damaged or no legacy PyTorch state dict ("
    assert str(caught.value).startswith(start) and str(caught.value).endswith("): use the file as it was published.")


@pytest.mark.parametrize(
    ("pid", "words"),
    [
        (("module", "FloatStorage", "0", "cpu", 1, None), "it holds more than tensors"),
        (("storage", "FloatStorage", "0", "cpu", 1, ("view", 0, 1)), "it holds more than tensors"),
        (("storage", "FloatStorage", "0"), "unpack"),
    ],
)
def test_what_is_no_storage_is_refused(tmp_path, pid, words):
    refused(tmp_path, headers() + pickle.dumps(pid, protocol=2)[:-1] + b"Q.", words)


@pytest.mark.parametrize(
    "name",
    ["torch\nTensor", "torch._utils\n_rebuild_tensor", "numpy\nFloatStorage", "x\nOrderedDict", "collections\ndeque"],
)
def test_every_other_name_is_refused(tmp_path, name):
    refused(tmp_path, headers() + b"\x80\x02c" + name.encode() + b"\n.", f"it asks for {name}".replace("\n", "."))


def test_other_versions_and_lengths_are_refused(small, tmp_path):
    content = small.read_bytes()
    body = content[len(headers()) :]
    refused(tmp_path, headers(protocol=1002) + body, "wrong magic number")
    at = len(content) - 8 - 4 * 8  # of the last storage's length
    for length, words in ((-1, "a storage of negative length"), (3, "Expected: "), (5, "buffer")):
        refused(tmp_path, content[:at] + struct.pack("<q", length) + content[at + 8 :], words)


def test_a_part_of_a_storage_is_read_up_to_its_end(tmp_path):
    state = OrderedDict(end=Tensor(np.arange(6.0), offset=5, shape=(1,)))
    (end,) = read_state_dict(write(tmp_path / "parts.pth", state)).values()
    assert end.tolist() == [5.0] and not end.flags.writeable
