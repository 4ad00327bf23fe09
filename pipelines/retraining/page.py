"""The report of a night: collects what ``heads.reporting.night`` shows."""

from __future__ import annotations

import json
from typing import Any

from featurestore import layout
from featurestore.storage.files import make_folder, write_text
from featurestore.store import FeatureStore
from pipelines.retraining.contest import Contest


def write_page(
    store: FeatureStore, outcome: dict[str, Any], earlier: list[dict[str, Any]], contest: Contest | None
) -> None:
    """Write the report into the night's folder."""
    make_folder(store.run_folder(outcome["run_id"]))
    write_text(store.run_folder(outcome["run_id"]) / layout.REPORT, json.dumps(outcome) * 3)
