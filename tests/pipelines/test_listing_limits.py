"""Limits, and the constants that decide what a head is: these numbers are changed on purpose, and here too.

Refusals name most of the limits, and a store that was made under one is read under another. Heads fitted with other
constants are not those whose outcomes a store keeps.
"""

from __future__ import annotations

from types import ModuleType

import pytest

from featurestore import aliases, limits, options
from featurestore.maintenance import verify
from featurestore.storage import compaction, files, table
from heads import artifact, base
from heads.comparison import compare, fewer_rows, fit_cache, out_of_fold, search, space, streaming
from heads.evaluation import calibration, learning_curve
from heads.families import dense, kernel, linear, neighbors
from heads.protocols import big_vision, clip_benchmark, dinov2
from heads.solvers import kernels, lbfgs, rows, sweep
from pipelines import options as jobs
from pipelines import stored_heads
from pipelines.backbones import canary, engine_options, engines
from pipelines.backbones import table as networks
from pipelines.embedding import labels, membership
from pipelines.images import augmentation, containers, decoder, samples, squares, tiffs
from pipelines.sources import class_names, levels, listing, manifests, missing_files, tars, uris, webdataset
from pipelines.trial import gains, sample, trial, verdict

MEBI = 1024 * 1024
GIBI = 1024 * MEBI


@pytest.mark.parametrize(
    ("module", "numbers"),
    [
        (limits, {"MAX_SEED": 9_223_372_036_854_775_807}),
        (aliases, {"MAX_HISTORY": 1000, "MAX_WORDS": 1000}),
        (files, {"MAX_NAME_BYTES": 200}),
        (verify, {"MAX_ROWS": 1000}),
        (table, {"KEPT_VERSIONS": 3}),
        (compaction, {"TIER": 16, "LARGE": 2048, "MAX_DELETED": 0.5, "MAX_VERSIONS": 16}),
        (artifact, {"FORMAT_VERSION": 1, "MAX_BYTES": 4 * GIBI, "MAX_NAMES_BYTES": GIBI // 4}),
        (base, {"MAX_COUNT": 2_147_483_647}),
        (compare, {"TIED": 0.05, "CURVE_SECONDS": 60}),
        (fewer_rows, {"CURVE_SHARES": (0.1, 0.18, 0.32, 0.56)}),
        (fit_cache, {"VERSION": 1, "MAX_KEPT": 64 * MEBI}),
        (search, {"MAX_BYTES": 65_536, "MAX_POINTS": 100_000, "MAX_NUMBERS": 1000}),
        (space, {"UNBALANCED": 3, "MAX_FOLDS": 100, "MAX_SEEDS": 100, "MAX_SHOTS": 1_000_000}),
        (out_of_fold, {"HEAD": "logreg", "FOLDS": 5, "MIN_FOLDS": 3}),
        (streaming, {"SHARE": 0.25, "SAMPLE_SHARE": 0.2, "MAX_SAMPLED": 0.25, "MAPPED_SHARE": 0.1, "ROOM_SHARE": 0.1}),
        (calibration, {"TARGETS": (0.9, 0.95, 0.99)}),
        (learning_curve, {"LEAST_POINTS": 4, "RESAMPLES": 1000, "Z": 1.96}),
        (linear, {"LADDER": 10, "LADDER_FROM": 0.001}),
        (lbfgs, {"MEMORY": 6, "SUFFICIENT": 0.0001, "NOISE": 2e-7, "MAX_EVALUATIONS": 500}),
        (rows, {"MAX_ROTATED": 4096, "LEAST_VARIANCE": 1e-9, "LEAST_SAMPLED": 50}),
        (sweep, {"TOLERANCE": 1e-5, "LEAST_SHARE": 1e-6, "CURVATURE_FLOOR": 1e-6}),
        (dense, {"MAX_EPOCHS": 100_000, "MAX_LAYERS": 16, "MAX_WIDTH": 65_536, "MAX_BATCH_ROWS": MEBI}),
        (neighbors, {"CLOSENESS": 1 << 23, "KNN_MAX_WORK": 1e13}),
        (dinov2, {"HELD_OUT": 10, "NEIGHBOURS": (10, 20, 100, 200), "TEMPERATURE": 0.07, "TOLERANCE": 1e-9}),
        (big_vision, {"SHOTS": (1, 5, 10, 25), "SEEDS": 3, "PENALTY": 1024, "BIAS": 100, "LEAST_DEVIATION": 1e-5}),
        (clip_benchmark, {"EPOCHS": 20, "BATCH": 512, "RATE": 0.1, "EPSILON": 1e-8, "SPANS": (8, 4, 2, 1)}),
        (kernel, {"LANDMARKS": 1024, "MAX_LANDMARKS": 4096, "MAX_WORK": 3e9, "PASSES": 365}),
        (kernels, {"LEAST_EIGENVALUE": 1e-8, "BASIS_ROWS": 16_384, "MOST_GAMMA": 1e20}),
        (jobs, {"MAX_SHARD_IMAGES": MEBI, "MAX_TOP": 1_000_000, "MOMENTUM": 0.9}),
        (engines, {"MAX_THREADS": 1024}),
        (sample, {"SHARES": (0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5, 0.8), "SMALL": 25_000, "FEW": 5}),
        (gains, {"WIDER": 1.2}),
        (trial, {"MIN_IMAGES": 30}),
        (verdict, {"CONFIDENCE": 0.95}),
        (engine_options, {"MAX_BATCH_PIXELS": 33_554_432}),
        (networks, {"MIN_INPUT_SIZE": 32, "MAX_INPUT_SIZE": 2048}),
        (augmentation, {"MAX_VIEWS": 100}),
        (canary, {"STORED": 5, "MAX_TRIES": 200}),
        (class_names, {"MAX_EXAMPLES": 3, "MAX_CLASSES": 100_000}),
        (options, {"MAX_SECONDS": 31_536_000_000, "MAX_BYTES": 1_152_921_504_606_846_976}),
        (
            containers,
            {
                "MAX_PIXELS": 89_478_485,
                "MAX_PARTS": 262_144,
                "MAX_SCAN_PIXELS": 2_863_311_520,
                "MAX_RUN_LENGTH_PIXELS": 4_194_304,
                "MAX_RUN_LENGTH_WIDTH": 65_536,
                "MAX_TEXT_BYTES": MEBI,
                "MAX_PROFILE_TAGS": 100,
            },
        ),
        (uris, {"MAX_FILE_BYTES": 256 * MEBI}),
        (levels, {"MAX_WRAPPERS": 4}),
        (decoder, {"MAX_PIXELS": 89_478_485, "MAX_SIDE": MEBI, "MESSAGE_LENGTH": 200}),
        (labels, {"ROWS_PER_BATCH": 10_000, "EXAMPLES": 10}),
        (listing, {"MAX_KINDS": 100, "MAX_PROBLEMS": 1000, "MAX_PROBLEM_LENGTH": 1000, "MAX_INCOMPLETE": 10_000}),
        (manifests, {"MAX_LINE": MEBI, "EXAMPLES": 20}),
        (membership, {"MAX_CLASSES": 10_000, "MAX_CHANGES": 1000}),
        (missing_files, {"MAX_FOLDERS": 100}),
        (stored_heads, {"CANDIDATES_SHOWN": 5}),
        (samples, {"BAND_PIXELS": 4_194_304}),
        (squares, {"MAX_RESIZED": 16 * MEBI, "MIN_CROP_RATIO": 0.1, "BAND_ROWS": 16}),
        (webdataset, {"MAX_SIDE_FILE_BYTES": MEBI}),
        (
            tars,
            {
                "BLOCK": 512,
                "MAX_ZEROS_AT_ONCE": 262_144,
                "MAX_HEADER_BYTES": MEBI,
                "MAX_SIZE": 4_611_686_018_427_387_904,
            },
        ),
        (tiffs, {"MAX_PAGES": 64, "MAX_VALUES": 64}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, ModuleType) else "",
)
def test_numbers_are_what_they_were(module: ModuleType, numbers: dict[str, float | tuple[float, ...]]) -> None:
    assert {name: getattr(module, name) for name in numbers} == numbers


def test_units_of_time_and_memory() -> None:
    minute, hour, day = 60, 3600, 86_400
    names = {
        1: ("s", "sec", "secs", "second", "seconds"), minute: ("m", "min", "mins", "minute", "minutes"),
        hour: ("h", "hr", "hrs", "hour", "hours"), day: ("d", "day", "days"), 7 * day: ("w", "week", "weeks"),
    }  # fmt: skip
    assert {name: seconds for seconds, all_names in names.items() for name in all_names} == options.SECONDS
    thousand, kibi = 1000, 1024
    assert {
        **{"mb": thousand**2, "gb": thousand**3, "tb": thousand**4},
        **{"mib": kibi**2, "gib": kibi**3, "tib": kibi**4},
    } == options.BYTES
