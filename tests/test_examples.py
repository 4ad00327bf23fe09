"""The examples in docstrings do what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("featurestore", "heads", "pipelines")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>>" in path.read_text()
]


def test_public_parts_have_examples() -> None:
    assert {
        *("featurestore.spec", "featurestore.storage.base", "featurestore.store", "heads.estimators", "heads.registry"),
        *("pipelines.backbones.base", "pipelines.run_kinds", "pipelines.sources.base"),
    } <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_examples(module: str) -> None:
    ran = doctest.testmod(importlib.import_module(module))
    assert ran.attempted > 0 and ran.failed == 0
