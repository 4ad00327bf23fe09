"""The images of the nights, made of scikit-learn's digits: run by penult's own Python, which has what it takes.

Usage: python corpus.py FOLDER
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SWAPPED = {1: 7, 7: 1, 3: 8, 8: 3}  # how the first batch is labelled wrongly
BATCHES = {"first": (0, 300), "october": (300, 330), "corrupt": (330, 380), "last": (380, 420)}
CORRUPT = 20  # of the batch


def main(folder: Path) -> None:
    """Write each batch as PNG files in class folders, and the two files that correct the first batch's labels."""
    digits = load_digits()
    for batch, (begin, end) in BATCHES.items():
        for number in range(begin, end):
            digit = int(digits.target[number])
            label = SWAPPED.get(digit, digit) if batch == "first" else digit
            path = folder / batch / str(label) / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            grey = np.kron(np.round(digits.images[number] * (255 / 16)).astype(np.uint8), np.ones((4, 4), np.uint8))
            Image.fromarray(grey).save(path)
            if batch == "corrupt" and number < begin + CORRUPT:
                path.write_bytes(path.read_bytes()[:60])
    first = range(*BATCHES["first"])
    for name, pair in (("ones-and-sevens", (1, 7)), ("threes-and-eights", (3, 8))):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label"])
            for number in first:
                digit = int(digits.target[number])
                if digit in pair:
                    writer.writerow(
                        [folder.parent / "photos" / "2026-11" / str(SWAPPED[digit]) / f"{number:04}.png", digit]
                    )


main(Path(sys.argv[1]).resolve())
