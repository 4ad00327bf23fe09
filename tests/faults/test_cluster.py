"""A handful of the faults of a cluster."""

from __future__ import annotations

from pathlib import Path

from faults import cluster


def test_an_image_that_kills_its_process_is_found_by_the_next_run(tmp_path: Path) -> None:
    cluster.poisoned(tmp_path, 50, "in process")
