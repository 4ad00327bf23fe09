"""The scores of heads, what they predict, and where they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featurestore.options import size_text
from pipelines.commands.output.console import place, say, table

if TYPE_CHECKING:
    from pipelines.predict import Prediction

LEADERS_SHOWN = 20
AMBIGUOUS = "ambiguous label"  # as in featurestore.dataset


def trained(result: Mapping[str, Any]) -> None:
    """Print the scores of one trained head."""
    low, high = result["test_ci"]
    say(
        f"{result['head']}: top-1 {result['test']:.1%} on test (95 % interval {low:.1%} to {high:.1%}), "
        f"{result['val']:.1%} on validation; the most frequent class alone gives {result['baseline']:.1%}."
    )
    _notes(result)
    if wrong := result.get("misclassified", ()):
        say(f"{len(wrong):,} test images predicted wrong, the surest first:")
    for row in wrong:
        say(f"  {row['probability']:6.1%}  {row['predicted']}, is {row['true']}  {row['uri']}")
    say(f"Head: {result['head_id']}")


def compared(result: Mapping[str, Any]) -> None:
    """Print the leaderboard of a comparison and its winner."""
    from heads.registry import describe

    several = any("feature_set" in row for row in result["leaderboard"])
    rows = [
        {
            **({"set": row.get("feature_set", "")} if several else {}),
            "head": row["head"],
            "parameters": ", ".join(filter(None, [describe(row["head"], row["params"]), row["class_weight"]])),
            "val": "failed" if row["val"] is None else f"{row['val']:.1%}",
            "interval": "" if row["val_ci"] is None else "{:.1%} to {:.1%}".format(*row["val_ci"]),
            "seconds": f"{row['fit_seconds']:.2f}",
            "note": row.get("error") or ", ".join(_remarks(row)),
        }
        for row in result["leaderboard"]
    ]
    table(rows, limit=LEADERS_SHOWN)
    winner, n = result["winner"], result["n"]
    low, high = winner["test_ci"]
    say(
        f"Winner by {result['chosen_by']}: {winner['head']} {describe(winner['head'], winner['params'])}. "
        f"On test: {winner['test']:.1%} (95 % interval {low:.1%} to {high:.1%}, {n['test']:,} images)."
    )
    if result["chosen"]:
        say("It is the simplest of the heads that are tied with the first.")
    elif result["simplest"]:
        simple = result["leaderboard"][result["simplest"]]
        named = f"{simple['head']} {describe(simple['head'], simple['params'])}".strip()
        say(f"{named} is simpler and tied with it (p = {simple['p_corrected']:.2f}): `--prefer simple` keeps that one.")
    if calibration := winner["calibration"]:
        say(
            f"Calibration error on test: {calibration['ece_after']:.1%} with temperature "
            f"{calibration['temperature']:.2g}, {calibration['ece_before']:.1%} without."
        )
    if (curve := result["learning_curve"]) and (more := curve["at_twice"]):
        say(
            f"With {more['n']:,} training images instead of {n['train']:,}: about {more['val']:.1%} on validation "
            f"({more['low']:.1%} to {more['high']:.1%})."
        )
    if result["fewshot"]:
        table(
            [
                {
                    "images per class": row["k"],
                    "head": row["head"],
                    "val": f"{row['val']:.1%}",
                    "range": "{:.1%} to {:.1%}".format(*row["val_range"]),
                }
                for row in result["fewshot"]
            ]
        )
    _notes(result)
    say(f"Head: {winner['head_id']}")
    say(f"Report: {result['report']}")


def evaluated(result: Mapping[str, Any]) -> None:
    """Print the results of a published evaluation, and where it is published."""
    table([dict(_result(row, several=len(result["seconds"]) > 1)) for row in result["scores"]])
    n = result["n"]
    say(
        f"{result['protocol']}: {result['about']}, of {n['classes']:,} classes, on {n['train']:,} images of train, "
        f"{n['val']:,} of val and {n['test']:,} of test."
    )
    say(f"Paper: {result['paper']}")
    say(f"Code: {result['code']}")
    _notes(result)
    say("No head is kept: `penult train` and `penult compare` without --protocol keep one.")
    say(f"Run: {result['run_id']}")


def _result(row: Mapping[str, Any], several: bool) -> Iterator[tuple[str, str]]:
    """Yield the columns of one row of a published evaluation."""
    if several:
        yield "set", row["feature_set"]
    for name, value in row.items():
        heading = {"top1": "top-1", "top5": "top-5", "top1_ci": "interval", "top1_range": "range"}.get(name, name)
        if name in ("C", "weight_decay", "k", "shots"):
            yield heading.replace("_", " "), f"{value:.4g}"
        elif name in ("top1_ci", "top1_range"):
            yield heading, "{:.1%} to {:.1%}".format(*value)
        elif name in ("top1", "top5", "mean_per_class_recall"):
            yield heading.replace("_", " "), f"{value:.1%}"


def _remarks(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the remarks on a row of a leaderboard."""
    if row.get("tied"):
        yield "tied with the first"
    if "val_range" in row:
        yield "seeds from {:.1%} to {:.1%}".format(*row["val_range"])
    if "note" in row:
        yield row["note"]


def finetuned(result: Mapping[str, Any]) -> None:
    """Print the scores of the head before and after fine-tuning."""
    n = result["n"]
    say(f"Best on validation: epoch {result['best_epoch']} of {result['epochs']}.")
    for name in ("before", "after"):
        row = result[name]
        low, high = row["test_ci"]
        say(
            f"{name.capitalize()}: top-1 {row['test']:.1%} on test (95 % interval {low:.1%} to {high:.1%}, "
            f"{n['test']:,} images), {row['val']:.1%} on validation."
        )
    say(f"Exact McNemar test of the difference: p = {result['p_value']:.2g}.")
    for reason, count in result["left_out"].items():
        say(f"Left out: {count:,} {reason}.")
    _notes(result)
    seconds = ", ".join(f"{stage} {took:.1f}" for stage, took in result["seconds"].items())
    say(f"Seconds: {seconds}; trained on {result['images_per_second']:.1f} images per second.")
    say(f"Backbone: {result['backbone']}")
    say(f"Head: {result['head_id']}")
    say(f"Report: {result['report']}")


def promoted(result: Mapping[str, Any]) -> None:
    """Print which head an alias points at now, and which one it pointed at before."""
    before = result["before"]
    unless = f", before: {before}" if before not in (None, result["head_id"]) else ""
    say(f"{result['alias']} is {result['head_id']}{unless}.")


def pointed(alias: str, told: Mapping[str, Any]) -> None:
    """Print where an alias has pointed, the newest move last."""
    table(
        [
            {
                "head": row["head_id"],
                "since": row["at"],
                "date": row["date"],
                "score": "" if row["score"] is None else f"{row['score']:.1%}",
                "why": ": ".join(filter(None, ["rollback" if row["undo"] else "", row["reason"]])),
                "by": row["by"],
            }
            for row in told["history"]
        ]
    )
    head = told["champion"]
    say(f"{alias} is {head}." if head else f"{alias} points at no head yet: `penult promote` puts one in use.")


def predicted(predictions: Sequence[Prediction]) -> None:
    """Print the labels of each image with their probabilities, or why it has none."""
    for prediction in predictions:
        say(prediction.name)
        if prediction.error:
            say(f"  {prediction.error_type}: {prediction.error}")
        for name, probability in prediction.top:
            say(f"  {probability:6.1%}  {name}")


def exported(result: Mapping[str, Any]) -> None:
    """Print where the exported model is, and the result of its check."""
    parity, side = result["parity"], result["input_size"]
    say(
        f"{result['path']}: {side}×{side} RGB in, {result['classes']:,} classes out, {size_text(result['bytes'])} "
        f"with {result['labels']}."
    )
    say(
        f"Checked on {parity['pictures']} images: probabilities within {parity['max_difference']:.1g} of the head's "
        f"on stored features, one image at a time within {parity['batch_1_against_n']:.1g} of all at once."
    )


def _notes(result: Mapping[str, Any]) -> None:
    for reason, count in result.get("excluded", {}).items():
        examples = map(place, result["ambiguous_uris"] if reason == AMBIGUOUS else ())
        such = f", such as {told}" if (told := " and ".join(examples)) else ""
        say(f"Left out: {count:,} with {reason}{such}.")
    for note in result.get("notes", ()):
        say(f"Note: {note}")
