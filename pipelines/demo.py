"""A small real corpus that ships inside scikit-learn, as image files in class folders."""

from __future__ import annotations

from pathlib import Path


def write_digits(folder: str | Path) -> int:
    """Write scikit-learn's handwritten digits as PNG files, one sub-folder per digit; return how many.

    1,797 scans of 8×8 grey values in 0..16 (Alpaydin & Kaynak 1998, UCI "Optical Recognition of Handwritten
    Digits", test part), enlarged four times. Existing files are left alone.
    """
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = Path(folder) / str(label) / f"{number:04}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            grey = np.kron(np.round(pixels * (255 / 16)).astype(np.uint8), np.ones((4, 4), np.uint8))
            Image.fromarray(grey).save(path)
    return len(digits.images)
