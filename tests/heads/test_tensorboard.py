"""TensorBoard's event files, read back."""

from pathlib import Path

import numpy as np
import pytest

from builders import DATASET
from featurestore.errors import UsageError
from heads.reporting import tensorboard
from heads.spec import HeadSpec
from heads.train import train


def events(folder: Path) -> dict[tuple[str, int], object]:
    """(tag, step) → value of a folder's only event file."""
    import tensorflow
    from tensorflow.core.util import event_pb2

    (file,) = folder.iterdir()
    assert file.name.startswith("events.out.tfevents.")
    found = {}
    for record in tensorflow.data.TFRecordDataset(str(file)):
        event = event_pb2.Event.FromString(record.numpy())
        for value in event.summary.value:
            found[value.tag, event.step] = tensorflow.make_ndarray(value.tensor).item()
            assert value.metadata.plugin_data.plugin_name == ("text" if value.tag == "head" else "scalars")
    return found


def test_curves_scores_and_parameters(tmp_path):
    result = train(DATASET, HeadSpec("dense", {"hidden": [8], "epochs": 3}))
    tensorboard.write(result, tmp_path / "logs" / "run")
    read = {path.name: events(path) for path in (tmp_path / "logs" / "run").iterdir()}
    assert read.keys() == {"train", "validation", "test"}
    for split, prefix in (("train", ""), ("validation", "val_")):
        for name in ("loss", "accuracy"):
            told = [read[split][f"epoch_{name}", step] for step in range(3)]
            np.testing.assert_allclose(told, [epoch[prefix + name] for epoch in result.history], rtol=1e-6)
    assert read["validation"]["top1", 0] == pytest.approx(result.val)
    assert {tag: value for (tag, _), value in read["test"].items()} == pytest.approx(result.metrics)
    assert b"| hidden | [8] |" in read["train"]["head", 0]


def test_a_head_without_epochs_has_scores_alone(tmp_path):
    result = train(DATASET, HeadSpec("logreg", {"C": 0.5}))
    tensorboard.write(result, tmp_path)
    assert events(tmp_path / "train").keys() == {("head", 0)}
    assert events(tmp_path / "validation") == {("top1", 0): pytest.approx(result.val)}


def test_a_folder_is_made_and_stays_as_it_was(tmp_path):
    folder = tmp_path / "some" / "logs"
    for _ in range(2):
        tensorboard.check(folder)
        assert list(folder.iterdir()) == []
    (folder / "run").write_text("kept")
    tensorboard.check(folder)
    assert [path.name for path in folder.iterdir()] == ["run"]
    for bad, why in ((folder / "run", "File exists"), (folder / "run" / "logs", "Not a directory")):
        with pytest.raises(UsageError, match=f"--tensorboard, a folder that can be written. Got: {bad}: {why}"):
            tensorboard.check(bad)
    with pytest.raises(UsageError, match="--tensorboard, a folder that can be written"):
        tensorboard.check(tmp_path / "a\0b")
    if (system := Path("/proc")).is_dir():  # where nobody may write, whoever it is
        with pytest.raises(UsageError, match="Got: /proc: "):
            tensorboard.check(system)
