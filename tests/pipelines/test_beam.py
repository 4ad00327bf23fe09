"""The Beam graph: every shard once, its runner's own options, and the error that a worker raised; and the demo."""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from featurestore.errors import PenultError, SpecMismatch, StoreCorrupt, UsageError
from featurestore.machine import available_cores
from pipelines import runners
from pipelines.demo import write_digits
from pipelines.embedding import beam


def test_every_shard_is_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    embedded: list[Any] = []
    monkeypatch.setattr(beam, "embed_shard", lambda *given: embedded.append(given) or SimpleNamespace(embedded=1))
    beam.run_shards("job", [1, 2, 4, 7, 9], runners.find("FnApiRunner"))  # type: ignore[arg-type]
    assert sorted(embedded) == [("job", shard, available_cores()) for shard in (1, 2, 4, 7, 9)]
    assert logging.getLogger("apache_beam.runners.common").level == logging.CRITICAL


@pytest.mark.parametrize("error", [StoreCorrupt("This is damaged."), OSError(28, "No space left on device")], ids=repr)
def test_the_error_of_a_worker_is_raised_as_it_was(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(beam, "embed_shard", fail)
    with pytest.raises(type(error)) as caught:
        beam.run_shards("job", [0], runners.find("FnApiRunner"))  # type: ignore[arg-type]
    assert caught.value.args == error.args


def chained(*errors: BaseException, suppressed: bool = False) -> BaseException:
    """The first error, each raised from the next, or while the next was handled."""
    for one, cause in itertools.pairwise(errors):
        if suppressed:
            one.__context__ = cause
        else:
            one.__cause__ = cause
    return errors[0]


def test_the_error_that_a_worker_raised_is_found_under_what_beam_made_of_it() -> None:
    own, disk, other = UsageError("Give one."), OSError(28, "full"), RuntimeError("x")
    copy = UsageError("Give one. [while running 'ParDo']")
    assert beam._own_error(chained(RuntimeError("a"), RuntimeError("b"), own), (PenultError, OSError)) is own
    assert beam._own_error(chained(RuntimeError("a"), disk, suppressed=True), (PenultError, OSError)) is disk
    assert beam._own_error(chained(copy, own), (PenultError, OSError)) is own
    assert beam._own_error(own, (PenultError, OSError)) is own
    assert beam._own_error(chained(own, disk), (PenultError, OSError)) is own
    assert beam._own_error(chained(other, RuntimeError("y")), (PenultError, OSError)) is None
    assert beam._own_error(chained(other, disk), (PenultError,)) is None
    hidden = chained(RuntimeError("a"), disk, suppressed=True)
    hidden.__suppress_context__ = True
    assert beam._own_error(hidden, (PenultError, OSError)) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Traceback\n  x\nfeaturestore.errors.SpecMismatch: Got: x. [while running 'ParDo(E)-1']\n\n",
            SpecMismatch("Got: x."),
        ),
        ("featurestore.errors.UsageError: Give one.", UsageError("Give one")),
        ("featurestore.errors.Interrupted: It was.", None),  # of another process, which says so by itself
        ("featurestore.errors.nosuch: It was.", None),
        ("ValueError: featurestore.errors.UsageError: no", None),
        ("", None),
    ],
)
def test_an_error_that_a_portable_runner_passes_on_as_text(text: str, expected: Exception | None) -> None:
    assert repr(beam._named_error(RuntimeError(text))) == repr(expected)


@pytest.mark.parametrize(
    ("runner", "argument", "said"),
    [
        ("FnApiRunner", "--direct_num_workers=many", r"argument --direct_num_workers: invalid int value: 'many'"),
        ("DaskRunner", "--dask_npartitions=x", r"argument --dask_npartitions: invalid int value: 'x'"),
    ],
)
def test_an_option_that_beam_refuses_is_told_in_a_sentence(
    runner: str, argument: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = runners.find(runner)
    with pytest.raises(UsageError, match=f"^Beam refuses an option of the runner: {said}.$"):
        beam._options(found, found.arguments([argument], 1))
    assert capsys.readouterr() == ("", "")


def test_options_of_a_runner_that_is_not_imported_yet_are_known() -> None:
    """In a process of its own: here a test may have imported it."""
    code = """
from pipelines import runners
from pipelines.embedding import beam
dask = runners.find("dask")
print(beam._options(dask, dask.arguments(["--dask_client_address=a"], 3)).get_all_options()["npartitions"])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert (done.stdout, "Discarding" in done.stderr) == ("3\n", False), done.stderr


def test_digits_are_pictures_of_their_grey_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sklearn.datasets.load_digits()
    some = SimpleNamespace(images=real.images[:12], target=real.target[:12])
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: some)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "0001.png").write_text("left alone")
    assert write_digits(tmp_path) == 12
    names = {f"{label}/{number:04}.png" for number, label in enumerate(some.target)}
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")} == names
    assert (tmp_path / "1" / "0001.png").read_text() == "left alone"
    pixels = np.asarray(Image.open(tmp_path / "0" / "0000.png"))
    assert pixels.shape == (32, 32) and pixels.dtype == np.uint8 and pixels.max() == round(15 * 255 / 16)
    expected = np.round(some.images[0] * (255 / 16)).astype(np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    assert (pixels == expected).all()
