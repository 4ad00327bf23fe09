"""Claim: a grid of kernel machines takes a small part of the time of scikit-learn's SVC, at the same accuracy.

Ten values of C × three gammas, all fits of a family in one comparison against a fit of SVC for each, on the same
training rows; both predict the validation rows for each fit. Each way's best on validation is scored on test, with
McNemar's paired test between the two. Ratios are of processor seconds, of all cores, as SVC uses one.

Features of efficientnet-lite0, of what this machine has: scikit-learn's digits, letters as drawn by the installed
TrueType fonts, and the icons of the Adwaita theme, by their category.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.svm import SVC

from benchmarks.report import show
from featurestore.dataset import Dataset
from featurestore.splits import Split
from featurestore.store import FeatureStore
from heads.base import standardisation, standardise
from heads.comparison.tables import Table
from heads.comparison.trials import Experiment, Trial
from heads.evaluation.significance import mcnemar
from heads.registry import complete
from heads.spec import HeadSpec
from pipelines.demo import write_digits

CS = tuple(float(f"{C:.3g}") for C in np.geomspace(0.01, 100, 10))
GAMMAS = (0.3, 1.0, 3.0)  # of scikit-learn's "scale"
SIDE = 112
ALPHABETS = ("09", "AZ", "az", "ΑΡ", "ΣΩ", "αω", "Ѐя")
FONTS, ICONS = Path("/usr/share/fonts"), Path("/usr/share/icons/Adwaita")

Picture = tuple[str, str, str, Image.Image]  # name, label, group


def letters() -> Iterator[Picture]:
    """Each class is a letter, each picture one font's drawing of it; a font is either trained on or tested on."""
    wanted = [chr(code) for first, last in ALPHABETS for code in range(ord(first), ord(last) + 1)]
    for path in sorted(FONTS.rglob("*.ttf")):
        font = ImageFont.truetype(str(path), 96)
        missing = bytes(font.getmask("\U0010ffff"))
        for letter in wanted:
            left, top, right, bottom = font.getbbox(letter)
            if bytes(font.getmask(letter)) == missing:
                continue
            picture = Image.new("L", (SIDE, SIDE), 255)
            at = ((SIDE - left - right) / 2, (SIDE - top - bottom) / 2)
            ImageDraw.Draw(picture).text(at, letter, font=font, fill=0)
            yield f"{path.stem}-{ord(letter):04x}.png", f"{ord(letter):04x}", path.stem, picture


def icons() -> Iterator[Picture]:
    """Each class is a category; all sizes of an icon are in one split."""
    for size in (24, 32, 48, 64, 96):
        for path in sorted((ICONS / f"{size}x{size}").rglob("*.png")):
            icon = Image.open(path).convert("RGBA").resize((SIDE, SIDE))
            picture = Image.new("RGBA", icon.size, "white")
            picture.alpha_composite(icon)
            name = path.stem.replace("-symbolic", "")
            yield f"{path.parent.name}-{size}-{path.name}", path.parent.name, name, picture.convert("RGB")


def write(folder: Path, pictures: Iterator[Picture]) -> None:
    folder.mkdir()
    with (folder / "manifest.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "group"))
        for name, label, group, picture in pictures:
            picture.save(folder / name)
            rows.writerow((name, label, group))


CORPORA: dict[str, Callable[[Path], object]] = {
    "digits": write_digits,
    "letters": lambda folder: write(folder, letters()),
    "icons": lambda folder: write(folder, icons()),
}


def features(folder: Path, name: str, views: int) -> dict[str, Dataset]:
    """The splits of a corpus, train with views; it is made and embedded unless it is there."""
    from pipelines.embedding.embed import embed
    from pipelines.images.augmentation import Augmentation
    from pipelines.options import EmbedOptions

    store = folder / f"{name}.store"
    source = folder / name / "manifest.csv" if name != "digits" else folder / name
    if not source.exists():
        CORPORA[name](folder / name)
    embed(str(source), store, EmbedOptions(input_size=SIDE))
    if views:
        embed(str(source), store, EmbedOptions(input_size=SIDE, views=views, augmentation=Augmentation(rotation=10)))
    opened = FeatureStore(store)
    data = opened.dataset(opened.resolve(None), split=Split(0.2, 0.2))
    parts = {split: data.part(split) for split in ("train", "val", "test")}
    return {**parts, "train": opened.augmented(parts["train"], views)} if views else parts


Way = tuple[float, float, dict[tuple[float, float], float], tuple[float, float], np.ndarray]
"""Processor seconds, seconds, accuracies on validation, the best one's C and gamma, the test rows it got right."""


def ours(parts: dict[str, Dataset], head: str, unit: float, landmarks: int) -> Way:
    """All fits of a family as a comparison makes them."""
    points = [(C, gamma) for gamma in GAMMAS for C in CS]
    specs = [
        HeadSpec(head, complete(head, {"C": C, "gamma": gamma * unit, "landmarks": landmarks})) for C, gamma in points
    ]
    began, spent = time.perf_counter(), time.process_time()
    table = Table(parts)
    tried = Experiment([table], specs).run([Trial(0, at, 0) for at in range(len(specs))])
    spent, took = time.process_time() - spent, time.perf_counter() - began
    assert tried.best is not None and not tried.errors, tried.errors
    accuracies = {points[trial.candidate]: float(outcome.right.mean()) for trial, outcome in tried.outcomes.items()}
    best, fitted = tried.best
    return spent, took, accuracies, points[best.candidate], fitted.predict(parts["test"].X) == parts["test"].y


def theirs(parts: dict[str, Dataset], unit: float, every: int) -> Way:
    """A fit of SVC for each, or for each ``every``-th C, scaled up."""
    train, val, test = parts["train"], parts["val"], parts["test"]
    mean, scale = standardisation(train.X)
    X, X_val, X_test = (standardise(part.X, mean, scale) for part in (train, val, test))
    accuracies, best, spent, took = {}, None, 0.0, 0.0
    for gamma in GAMMAS:
        for C in CS[::-1][::every]:
            began, before = time.perf_counter(), time.process_time()
            model = SVC(C=C, gamma=gamma * unit, cache_size=500).fit(X, train.y)
            value = accuracies[C, gamma] = float(model.score(X_val, val.y))
            spent, took = spent + time.process_time() - before, took + time.perf_counter() - began
            if best is None or value > best[0]:
                best = value, (C, gamma), model
            print(f"SVC C {C:g} gamma {gamma:g}: {value:.4f}, {spent:.0f} s so far", file=sys.stderr, flush=True)
    assert best is not None
    factor = len(CS) * len(GAMMAS) / len(accuracies)
    return factor * spent, factor * took, accuracies, best[1], best[2].predict(X_test) == test.y


def race(name: str, parts: dict[str, Dataset], heads: list[str], landmarks: int, every: int) -> list[dict[str, Any]]:
    X = standardise(parts["train"].X, *standardisation(parts["train"].X))
    unit = 1 / (X.shape[1] * float(X.var(dtype=np.float64)))
    found = {head: ours(parts, head, unit, landmarks) for head in heads}
    found["SVC"] = theirs(parts, unit, every)
    n, d = X.shape
    rows = []
    for who, (spent, took, accuracies, (C, gamma), right) in found.items():
        rows.append(
            {
                "corpus": f"{name}, {n:,} × {d:,}, {len(np.unique(parts['train'].y))} classes",
                "who": who,
                "fits": f"{len(accuracies)}",
                "processor seconds for all": round(spent, 1),
                "seconds for all": round(took, 1),
                "SVC takes": f"{found['SVC'][0] / spent:.1f}×",
                "best": f"C {C:g}, gamma {gamma:g} scale",
                "validation": f"{max(accuracies.values()):.2%}",
                "test": f"{right.mean():.2%} of {len(right):,}",
                "McNemar's p": f"{mcnemar(right, found['SVC'][-1]):.2g}",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the corpora and their features are made, and found again")
    parser.add_argument("--corpora", default=",".join(CORPORA))
    parser.add_argument("--heads", default="kernel-svm,kernel-logreg")
    parser.add_argument("--views", type=int, default=2, help="per training image, which are rows to train on too")
    parser.add_argument("--landmarks", type=int, default=1024)
    parser.add_argument("--every", type=int, default=1, help="fit SVC for every so many values of C, and scale up")
    arguments = parser.parse_args()
    arguments.folder.mkdir(exist_ok=True)
    rows = []
    for name in arguments.corpora.split(","):
        parts = features(arguments.folder, name, arguments.views)
        rows += race(name, parts, arguments.heads.split(","), arguments.landmarks, arguments.every)
        print(*rows[-3:], sep="\n", file=sys.stderr, flush=True)
    show(f"{len(CS)} values of C × {len(GAMMAS)} gammas of kernel machines", rows)


if __name__ == "__main__":
    main()
