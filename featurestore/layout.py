"""The paths of everything in a store. No other module spells a path, a table's name or a folder of a store."""

from __future__ import annotations

from pathlib import PurePath

HEADER, LOCK, PROBE = "penult.json", "lock", "probe"
CATALOG, LABELS = "catalog.lance", "labels.lance"
FEATURES, RUNS, JOURNALS, RESULTS = "features", "runs", "staging", "results"
KEPT_HEADS = "heads"  # in the folder of kept results
BACKBONES, FINETUNINGS, ALIASES, ASIDE = "backbones", "finetune", "aliases", "damaged"
MODELS = "models"  # in the folder of backbones
NIGHTS = "nights"
TABLE, WEIGHTS, JSON = ".lance", ".weights.h5", ".json"  # suffixes of names

COPYING = "copy.json"  # exists while a copy of a store is under way there
LEDGER, CANARY = "ledger.json", "canary.json"  # in the folder of a table; in that of a feature set
RECORD, REPORT = "run.json", "report.html"  # in the folder of a run
HEAD, HEAD_ARRAYS, LABELLED = "head.json", "head.npz", "labelled.npz"  # in the folder of a run too
PLAN, PLANNED_LABELS, SHARDS = "plan.arrow", "labels.arrow", "shards"  # in a journal, beside its RECORD
GRAPH, GRAPH_WEIGHTS = "graph.xml", "graph.bin"  # in the journal of a run on a cluster
BEGUN, CHECKPOINT = "begun.json", "checkpoint.npz"  # in the folder of a fine-tuning under way


def header(store: PurePath) -> PurePath:
    """Return the file with the format version and the state after the last commit."""
    return store / HEADER


def table_name(feature_set: str) -> str:
    """Return the path of a feature set's table relative to the store, by which the header and findings name it."""
    return f"{FEATURES}/{feature_set}{TABLE}"


def features(store: PurePath, feature_set: str) -> PurePath:
    """Return the folder of a feature set's table."""
    return store / table_name(feature_set)


def run(store: PurePath, run_id: str) -> PurePath:
    """Return the folder of a run's results."""
    return store / RUNS / run_id


def manifest(store: PurePath, run_id: str) -> PurePath:
    """Return the file that names the images that a run embedded, where they are not those of a source."""
    return run(store, run_id) / "manifest.parquet"


def journal(store: PurePath, run_id: str) -> PurePath:
    """Return the journal's folder of a run that has not committed."""
    return store / JOURNALS / run_id


def finetuning(store: PurePath, digest: str) -> PurePath:
    """Return the folder of a fine-tuning under way."""
    return store / FINETUNINGS / digest


def backbone(store: PurePath, run_id: str) -> PurePath:
    """Return the file that describes the backbone that a fine-tuning made."""
    return store / BACKBONES / f"{run_id}{JSON}"


def weights(store: PurePath, sha256: str) -> PurePath:
    """Return the file with a fine-tuned backbone's weights."""
    return store / BACKBONES / f"{sha256}{WEIGHTS}"


def models(store: PurePath) -> PurePath:
    """Return the folder with the networks that users added: a description per name, and graphs by digest."""
    return store / BACKBONES / MODELS


def kept_heads(store: PurePath) -> PurePath:
    """Return the folder with the heads of kept results, a folder each."""
    return store / RESULTS / KEPT_HEADS


def alias(store: PurePath, name: str) -> PurePath:
    """Return the file that says where an alias points."""
    return store / ALIASES / f"{name}{JSON}"


def night(store: PurePath, date: str, digest: str) -> PurePath:
    """Return the file with the state of a night: a recipe, by its digest, on a logical date (ISO 8601)."""
    return store / NIGHTS / f"{date}-{digest[:12]}{JSON}"


def night_lock(store: PurePath) -> PurePath:
    """Return the file that a night locks while it is under way."""
    return store / NIGHTS / LOCK
