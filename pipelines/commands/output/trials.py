"""What a trial of backbones found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featurestore.options import size_text
from pipelines.commands.output.console import say, table
from pipelines.trial.verdict import duration

ENDS = {
    "decided": "The trial ended as every difference was sure or small.",
    "max_share": "The trial ended at --max-share.",
    "budget": "The trial ended with its --budget.",
}


def tried(result: Mapping[str, Any]) -> None:
    """Print a row per backbone, and the recommendation."""
    table([_row(row) for row in result["backbones"]])
    say(
        f"{ENDS[result['stopped']]} All its intervals hold together with 95 %: {result['planned_looks']} looks were "
        f"planned, so that each has {100 * result['confidence']:.2f} %. Accuracy is that of cross-validated "
        f"{result['head']}."
    )
    say(f"Embedding the sample took {result['seconds']:.1f} s; `penult embed` computes what is left, and only that.")
    say(result["recommendation"])
    say(f"Run: {result['run_id']}")


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    low, high = row.get("gain_ci", (0.0, 0.0))
    return {
        "backbone": row["backbone"],
        "images": f"{row['images']:,}",
        "accuracy": f"{row['accuracy']:.1%}",
        "gain": f"{100 * row['gain']:+.1f}" if "gain" in row else "",
        "interval": f"{100 * low:+.1f} to {100 * high:+.1f}" if "gain" in row else "",
        "verdict": row.get("verdict", "in use"),
        "per second": "" if row["images_per_second"] is None else f"{row['images_per_second']:.1f}",
        "left": f"{row['left']:,}",
        "would take": duration(row["hours"]),
        "and": size_text(row["bytes"]),
    }
