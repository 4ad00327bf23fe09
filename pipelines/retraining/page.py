"""The report of a night: collects what ``heads.reporting.night`` shows, and writes it into the night's folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from featurestore import layout
from featurestore.storage.files import make_folder, write_text
from featurestore.store import FeatureStore
from heads.reporting.night import Disagreement, Disagreements, NightPage, render
from pipelines.retraining.contest import Contest
from pipelines.training import thumbnail

MOST = 16  # images per kind of disagreement


def write_page(
    store: FeatureStore, outcome: dict[str, Any], earlier: Sequence[dict[str, Any]], contest: Contest | None
) -> None:
    """Write a night's report, with the scores of ``earlier`` nights and the images of the contest, if there was one."""
    folder = store.run_folder(outcome["run_id"])
    examples = {check["name"]: check["images"] for check in outcome["checks"]}
    found = None if contest is None else _disagreements(contest)
    make_folder(folder)
    write_text(folder / layout.REPORT, render(NightPage(outcome, earlier, found, examples, thumbnail)))


def _disagreements(contest: Contest) -> Disagreements | None:
    """Return on which images the heads disagree; None if they were not both scored."""
    y, new, old = contest.ballot.y, contest.ballot.challenger, contest.ballot.champion
    if old is None:
        return None
    kinds = ((new == y) & (old != y), (new != y) & (old == y), (new != y) & (old != y) & (new != old))
    rows = np.concatenate([np.flatnonzero(kind)[:MOST] for kind in kinds])
    shown = [Disagreement(*(str(told[row]) for told in (contest.uris, y, old, new))) for row in rows]
    challenger_right, champion_right, both_wrong = (int(kind.sum()) for kind in kinds)
    return Disagreements(challenger_right, champion_right, both_wrong, shown)
