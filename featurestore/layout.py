"""Where everything in a store lies. No other module spells a path, a table's name or a folder of a store."""

from __future__ import annotations

from pathlib import Path

HEADER, LOCK = "penult.json", "lock"
CATALOG, LABELS = "catalog.lance", "labels.lance"
FEATURES, RUNS, JOURNALS, RESULTS = "features", "runs", "staging", "results"
BACKBONES, FINETUNINGS, ALIASES, ASIDE = "backbones", "finetune", "aliases", "damaged"
TABLE, WEIGHTS, JSON = ".lance", ".weights.h5", ".json"  # how names end

LEDGER, CANARY = "ledger.json", "canary.json"  # in the folder of a table, of a feature set
RECORD, REPORT = "run.json", "report.html"  # in the folder of a run
HEAD, HEAD_ARRAYS = "head.json", "head.npz"  # likewise
PLAN, PLANNED_LABELS, SHARDS = "plan.arrow", "labels.arrow", "shards"  # in a journal, beside a record
BEGUN, CHECKPOINT = "begun.json", "checkpoint.npz"  # in the folder of a fine-tuning under way


def header(store: Path) -> Path:
    """The format version, and what the last commit left."""
    return store / HEADER


def features(store: Path, feature_set: str) -> Path:
    """The table of a feature set."""
    return store / FEATURES / f"{feature_set}{TABLE}"


def run(store: Path, run_id: str) -> Path:
    """The folder of what a run made."""
    return store / RUNS / run_id


def journal(store: Path, run_id: str) -> Path:
    """The journal of a run that has not committed."""
    return store / JOURNALS / run_id


def finetuning(store: Path, digest: str) -> Path:
    """The folder of a fine-tuning under way."""
    return store / FINETUNINGS / digest


def backbone(store: Path, run_id: str) -> Path:
    """The description of the backbone that a fine-tuning made."""
    return store / BACKBONES / f"{run_id}{JSON}"


def weights(store: Path, sha256: str) -> Path:
    """A fine-tuned backbone's weights."""
    return store / BACKBONES / f"{sha256}{WEIGHTS}"


def alias(store: Path, name: str) -> Path:
    """Where an alias points."""
    return store / ALIASES / f"{name}{JSON}"
