"""Limits of the listing and of pictures: what bounds memory and time is changed on purpose, and here too.

Refusals name most of these numbers, and a store that was made under one limit is read under another.
"""

from __future__ import annotations

from types import ModuleType

import pytest

from featurestore import options
from pipelines import options as job_options
from pipelines import stored_heads
from pipelines.backbones import canary
from pipelines.embedding import labels, membership
from pipelines.images import containers, decoder, samples, tiffs
from pipelines.sources import class_names, folders, listing, manifests, missing_files, tars, uris, webdataset

MEBI = 1024 * 1024


@pytest.mark.parametrize(
    ("module", "limits"),
    [
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
        (folders, {"MAX_WRAPPERS": 4}),
        (decoder, {"MAX_PIXELS": 89_478_485, "MAX_SIDE": MEBI, "MESSAGE_LENGTH": 200}),
        (labels, {"ROWS_PER_BATCH": 10_000, "EXAMPLES": 10}),
        (listing, {"MAX_KINDS": 100, "MAX_PROBLEMS": 1000, "MAX_PROBLEM_LENGTH": 1000, "MAX_INCOMPLETE": 10_000}),
        (manifests, {"MAX_LINE": MEBI, "EXAMPLES": 20}),
        (membership, {"MAX_CLASSES": 10_000, "MAX_CHANGES": 1000}),
        (missing_files, {"MAX_FOLDERS": 100}),
        (job_options, {"MAX_TOP": 1_000_000}),
        (stored_heads, {"CANDIDATES_SHOWN": 5}),
        (samples, {"BAND_PIXELS": 4_194_304}),
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
def test_limits_are_what_they_were(module: ModuleType, limits: dict[str, float]) -> None:
    assert {name: getattr(module, name) for name in limits} == limits


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
