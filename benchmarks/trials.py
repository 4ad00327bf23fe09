"""How often a trial of backbones is wrong: `python -m benchmarks.trials [TRIALS]`.

Two backbones are drawn from the same distribution, so that their true difference is 0; or the second has less noise,
and the true difference at each look is the mean over all trials. Each trial looks at 500, 750 and 1,250 images, as one
of a small corpus does, and fits and predicts at each look as `penult trial` does. Counted is how many trials have an
interval that misses the true difference, at any look: with the intervals of a trial, and with plain 95 % ones.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np

from featurestore.dataset import Dataset
from heads.comparison.out_of_fold import out_of_fold
from heads.evaluation.difference import top1_gain
from heads.evaluation.metrics import wilson
from pipelines.trial.gains import gain_of
from pipelines.trial.verdict import confidence_of

LOOKS = (500, 750, 1250)
WIDTH, CLASSES, NOISE = 12, 5, 1.6


class Scenario(NamedTuple):
    """What is drawn: how much noise the second backbone has, and how many images are alike."""

    name: str
    noise: float = NOISE
    group: int = 1


SCENARIOS = (
    Scenario("equally good"),
    Scenario("the second better", noise=1.4),
    Scenario("equally good, groups of 5", group=5),
)


def drawn(scenario: Scenario, seed: int) -> tuple[Dataset, Dataset]:
    """The features of two backbones for the same images, in an order in which every beginning is a sample."""
    rng, n = np.random.default_rng(seed), LOOKS[-1]
    unit = np.arange(n) // scenario.group
    y = rng.integers(CLASSES, size=n)[unit]
    means = np.random.default_rng(0).normal(size=(CLASSES, WIDTH))  # the same for all: only noise tells them apart
    sets = []
    for which, noise in enumerate((NOISE, scenario.noise)):
        own = 0.4 * rng.normal(size=(n, WIDTH)) if scenario.group > 1 else 0.0
        X = means[y] + noise * rng.normal(size=(n, WIDTH))[unit] + own
        sets.append(
            Dataset(
                feature_set=f"set-{which}",
                fingerprint=str(which) * 64,
                X=X.astype(np.float32),
                y=np.array([f"class {one}" for one in y]),
                keys=np.array([rng.bytes(31) + b"\1" for _ in range(n)], "S32"),
                uris=np.array([str(i) for i in range(n)]),
                splits=np.full(n, "train"),
                groups=np.array([f"{seed}-{one}" for one in unit]) if scenario.group > 1 else None,
            )
        )
    return sets[0], sets[1]


def intervals(scenario: Scenario, seed: int) -> np.ndarray:
    """The value and both kinds of intervals at each look of one trial, float64 (looks, 2, 3)."""
    told = np.empty((len(LOOKS), 2, 3))
    old, new = drawn(scenario, seed)
    for look, n in enumerate(LOOKS):
        one, other = old.take(slice(n)), new.take(slice(n))
        said = one.y, out_of_fold(other), out_of_fold(one), one.groups
        for at, (value, (low, high)) in enumerate([gain_of(*said, confidence_of(len(LOOKS), 1)), top1_gain(*said)]):
            told[look, at] = value, low, high
    return told


def main(trials: int) -> None:
    for scenario in SCENARIOS:
        told = np.array([intervals(scenario, seed) for seed in range(trials)])
        truth = told[:, :, :1, 0].mean(axis=0) if scenario.noise != NOISE else 0.0
        missed = ((told[..., 1] > truth) | (told[..., 2] < truth)).any(axis=1).mean(axis=0)
        for name, share in zip(("of a trial", "plain 95 %"), missed, strict=True):
            low, high = wilson(float(share), trials)
            print(
                f"{scenario.name}, intervals {name}: {share:.1%} of {trials:,} miss ({low:.1%} to {high:.1%})",
                flush=True,
            )
        assumed = (told[:, :, 1, 2] - told[:, :, 1, 1]).mean(axis=0) / 2 / 1.96
        ratios = ", ".join(f"{ratio:.2f}" for ratio in told[:, :, 0, 0].std(axis=0) / assumed)
        print(f"{scenario.name}: gains vary by {ratios} times what plain intervals assume, per look", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
