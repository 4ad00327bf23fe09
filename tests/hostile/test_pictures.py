"""The quick part: the zoo but for its largest images, in one run and through the decoder; some damaged files."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostile import pictures


def test_the_zoo_has_its_outcomes_and_its_pixels(tmp_path: Path) -> None:
    pictures.decode([kind for kind in pictures.kinds() if kind not in ("large", "bomb")], tmp_path)


def test_a_run_over_the_zoo(tmp_path: Path) -> None:
    pictures.embed("folder", tmp_path, without=("large",))


@pytest.mark.parametrize("what", ["pictures", "tars"])
def test_damaged_files_fail_cleanly(tmp_path: Path, what: str) -> None:
    pictures.damage(what, 0, 0, tmp_path)


def test_a_part_of_all_kinds_of_samples(tmp_path: Path) -> None:
    pictures.compare(0, 0, tmp_path, parts=3 * pictures.KINDS)
