"""Corpora of any size: crops of photographs, saved as JPEG files in class folders."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

# Debian's plasma-workspace-wallpapers, mate-backgrounds and lomiri-wallpapers-16.04, where they are installed.
PHOTO_FOLDERS = (Path("/usr/share/wallpapers"), Path("/usr/share/backgrounds"))
CLASSES = 10
QUALITY = 92


def photographs() -> list[Path]:
    """Large photographs of this machine; else the two that ship with scikit-learn."""
    found = [p for folder in PHOTO_FOLDERS if folder.is_dir() for p in sorted(folder.rglob("*.jp*g"))]
    large = [p for p in found if p.stat().st_size > 500_000]
    if large:
        return large
    from sklearn.datasets import load_sample_images

    return [Path(name) for name in load_sample_images().filenames]


def write_crops(folder: Path, count: int, width: int = 500, height: int = 375) -> Path:
    """Write ``count`` different crops; a folder that holds them already is left alone."""
    done = folder / "complete"
    if not (done.exists() and done.read_text() == f"{count} {width} {height}"):
        for label in range(CLASSES):
            (folder / f"class-{label}").mkdir(parents=True, exist_ok=True)
        sources = photographs()
        jobs = [(folder, source, k, len(sources), count, width, height) for k, source in enumerate(sources)]
        with ProcessPoolExecutor() as pool:
            list(pool.map(_crops_of, jobs))
        done.write_text(f"{count} {width} {height}")
    return folder


def _crops_of(job: tuple[Path, Path, int, int, int, int, int]) -> None:
    folder, source, k, sources, count, width, height = job
    photo = Image.open(source).convert("RGB")
    random = np.random.default_rng(k)
    boxes: set[tuple[int, int, int, int]] = set()
    for number in range(k, count, sources):
        box = _box(random, photo, width, height)
        while box in boxes:
            box = _box(random, photo, width, height)
        boxes.add(box)
        crop = photo.resize((width, height), Image.Resampling.BILINEAR, box, reducing_gap=2)
        crop.save(folder / f"class-{number % CLASSES}" / f"{number:06}.jpg", quality=QUALITY)


def _box(random: np.random.Generator, photo: Image.Image, width: int, height: int) -> tuple[int, int, int, int]:
    scale = random.uniform(0.4, 1.0) * min(photo.width / width, photo.height / height)
    w, h = int(width * scale), int(height * scale)
    left, top = int(random.integers(0, photo.width - w + 1)), int(random.integers(0, photo.height - h + 1))
    return left, top, left + w, top + h
