"""How the planned images are cut into shards, and shards into tasks."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.journal import Staging
from featurestore.layout import PLAN as PLAN_FILE
from featurestore.schema import LABELS
from pipelines.embedding import plan
from pipelines.embedding.plan import PLAN, Cut, Planned, shard_images, shards_per_task
from pipelines.sources.corpus import Entry


@pytest.mark.parametrize(
    ("per_image", "images", "cores", "workers", "expected"),
    [
        (0.0125, 10**6, 2, 1, 800),  # 5 s of two cores
        (0.0125, 10, 2, 1, 800),
        (0.5, 10**6, 1, 1, 32),  # no less
        (0.0125, 10**6, 64, 1, 4096),  # no more
        (0.0, 10**6, 1, 1, 4096),
        (0.0125, 10**6, 1, 100, 400),  # many images: by time
        (0.0125, 20_000, 1, 100, 50),  # few: four shards for each worker
        (0.0125, 1000, 1, 100, 32),
        (0.0125, 20_001, 1, 100, 51),
    ],
)
def test_a_shard_takes_some_seconds_and_no_worker_goes_without(
    per_image: float, images: int, cores: int, workers: int, expected: int
) -> None:
    assert shard_images(per_image, images, cores, workers) == expected


@given(st.integers(1, 10**6), st.integers(1, 2000))
def test_tasks_are_many_enough_for_all_workers_and_no_larger_than_they_need_be(shards: int, workers: int) -> None:
    size = shards_per_task(shards, workers)
    tasks = math.ceil(shards / size)
    assert 1 <= size <= 16
    assert size == 1 or tasks >= 8 * workers
    assert size == 16 or shards < (size + 1) * 8 * workers


def written(tmp_path: Path, cut: Cut, batches: list[list[int]]) -> tuple[Planned, list[list[str]]]:
    """What is planned of images with these numbers, listed in these batches, and the shards."""
    staging = Staging(tmp_path, "r1")
    staging.begin("set-00000000")
    with staging.writer("plan", PLAN) as file, staging.writer("labels", LABELS):
        writer = plan._ShardWriter(file, cut)
        for numbers in batches:
            writer.add([Entry(f"u{n}", 1, 1, -1) for n in numbers], plan.np.full(len(numbers), plan.NEW))
        planned = writer.close()
    with pa.ipc.open_file(tmp_path / "staging" / "r1" / PLAN_FILE) as reader:
        shards = [reader.get_batch(i).column("uri").to_pylist() for i in range(reader.num_record_batches)]
    return planned, shards


def test_shards_are_cut_evenly_and_what_stands_apart_comes_last(tmp_path: Path) -> None:
    asked: list[int] = []

    def size(images: int) -> int:
        asked.append(images)
        return 3

    planned, shards = written(
        tmp_path, Cut(size, {"u1", "u6", "u7", "u8", "other"}), [[0, 1, 2, 3], [], [4, 5, 6], [7, 8, 9]]
    )
    assert shards == [["u0", "u2", "u3"], ["u4", "u5", "u9"], ["u1", "u6", "u7"], ["u8"]]
    assert planned == Planned(images=10, shards=4, apart_from=2) and asked == [6]


def test_many_images_are_written_before_all_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "WAITING", 5)
    asked: list[int] = []
    cut = Cut(lambda images: asked.append(images) or 4)
    planned, shards = written(tmp_path, cut, [[0, 1, 2], [3, 4, 5], [6], [7, 8]])
    assert [len(shard) for shard in shards] == [4, 4, 1] and asked == [6]
    assert planned == Planned(9, 3, 3)


def test_nothing_is_measured_for_nothing(tmp_path: Path) -> None:
    planned, shards = written(tmp_path, Cut(lambda _: pytest.fail("asked")), [[], []])
    assert planned == Planned(0, 0, 0) and shards == []


def test_only_what_stands_apart(tmp_path: Path) -> None:
    planned, shards = written(tmp_path, Cut(lambda _: 2, {"u0", "u1", "u2"}), [[0, 1, 2]])
    assert planned == Planned(3, 2, 0) and shards == [["u0", "u1"], ["u2"]]
