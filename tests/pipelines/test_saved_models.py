"""SavedModels are programs: only arithmetic is run by TensorFlow, and nothing while they are loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import ROOT
from featurestore.errors import BackboneError
from heads.backend import import_tensorflow
from pipelines.backbones import saved_models

GOLDEN = ROOT / "tests" / "golden" / "models" / "saved_model"


def saved(folder: Path, step: Callable[[Any, Any], Any], **held: Any) -> Path:
    """A SavedModel that gives what a step makes of its input and of what the module holds."""
    tf = import_tensorflow()
    module = tf.Module()
    for name, value in held.items():
        setattr(module, name, value)
    function = tf.function(
        lambda pixels: {"output": step(tf, pixels)}, input_signature=[tf.TensorSpec([None, 2, 2, 3], tf.float32)]
    )
    tf.saved_model.save(module, folder, signatures={"serving_default": function})
    return folder


def edited(folder: Path, edit: Callable[[Any], None]) -> Path:
    """A copy of the golden SavedModel whose description was changed."""
    import_tensorflow()
    from tensorflow.core.protobuf import saved_model_pb2

    shutil.copytree(GOLDEN, folder)
    described = saved_model_pb2.SavedModel()
    described.ParseFromString((folder / "saved_model.pb").read_bytes())
    edit(described.meta_graphs[0])
    (folder / "saved_model.pb").write_bytes(described.SerializeToString())
    return folder


def test_arithmetic_with_branches_and_loops_is_run(tmp_path: Path) -> None:
    def step(tf: Any, pixels: Any) -> Any:
        grown = tf.while_loop(lambda x: tf.reduce_sum(x) < 100.0, lambda x: (x * 2.0,), (pixels,))[0]
        return tf.cond(tf.reduce_max(grown) > 1e6, lambda: grown * 0.0, lambda: grown + 1.0)

    model = saved_models.load(saved(tmp_path / "m", step))
    got = model.signatures["serving_default"](pixels=import_tensorflow().ones((1, 2, 2, 3)))["output"].numpy()
    np.testing.assert_array_equal(got, np.full((1, 2, 2, 3), 17.0))
    assert saved_models.load(GOLDEN).signatures["serving_default"] is not None


@pytest.mark.parametrize("operation", ["WriteFile", "ReadFile", "RandomUniform", "EagerPyFunc"])
def test_an_operation_that_is_no_arithmetic_is_refused_and_not_run(tmp_path: Path, operation: str) -> None:
    harm = tmp_path / "harm.txt"

    def step(tf: Any, pixels: Any) -> Any:
        made = {
            "WriteFile": lambda: tf.io.write_file(str(harm), "written"),
            "ReadFile": lambda: tf.io.read_file(str(harm)),
            "RandomUniform": lambda: tf.random.uniform([1]),
            "EagerPyFunc": lambda: tf.py_function(lambda: harm.write_text("run"), [], tf.int32),
        }[operation]()
        with tf.control_dependencies([made] if made is not None else []):
            return tf.identity(pixels)

    with pytest.raises(BackboneError, match=rf"arithmetic alone\. Got: one with {operation}: use `--engine openvino`"):
        saved_models.load(saved(tmp_path / "m", step))
    assert not harm.exists()


def test_a_table_that_is_filled_while_it_is_loaded_is_refused(tmp_path: Path) -> None:
    tf = import_tensorflow()
    (tmp_path / "words.txt").write_text("a\nb\n")
    table = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            str(tmp_path / "words.txt"),
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            -1,  # -1: the line's number
        ),
        -1,
    )
    model = saved(tmp_path / "m", lambda tf, pixels: pixels + tf.cast(table.size(), tf.float32), table=table)
    with pytest.raises(BackboneError, match=r"Got: one with asset, resource: use `--engine openvino`"):
        saved_models.load(model)


def test_what_would_run_while_it_is_loaded_is_refused(tmp_path: Path) -> None:
    def restores(graph: Any) -> None:
        graph.object_graph_def.nodes[0].saveable_objects["x"].restore_function = 1

    def forgets(graph: Any) -> None:
        del graph.object_graph_def.nodes[:]

    with pytest.raises(BackboneError, match="a function to restore it"):
        saved_models.load(edited(tmp_path / "a", restores))
    with pytest.raises(BackboneError, match="Got: one of TensorFlow 1"):
        saved_models.load(edited(tmp_path / "b", forgets))


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "m")
    (tmp_path / "m" / "saved_model.pb").write_bytes(b"\xff" * 99)
    with pytest.raises(BackboneError, match=r"saved_model\.pb is no SavedModel"):
        saved_models.load(tmp_path / "m")
