"""The tables of a recipe that are no other job's options, and what is given beside the recipe on the command line."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Annotated

from featurestore.errors import UsageError
from featurestore.limits import check_amount, check_count, check_label_set
from featurestore.options import Option, budget, seconds
from pipelines.options import LABEL_SET, MAX_FAILURE_RATE, check_share

LEVELS = ("off", "warn", "block")
RULES = ("better", "not-worse")
METRICS = ("top1", "macro_f1", "mean_recall")
EVENTS = PROMOTED, KEPT, BLOCKED, UNCHANGED, FAILED = ("promoted", "kept", "blocked", "unchanged", "failed")
EXAMPLES = 12  # images named per check
MAX_KEPT = 100_000  # runs, heads and exports


def calendar_date(text: str) -> datetime.date:
    """Parse a date such as 2026-11-01."""
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"Expected: --date, a day such as 2026-11-01. Got: {text or 'nothing'}.") from None


@dataclass(frozen=True)
class SourceOptions:
    """Where the images come from."""

    location: Annotated[
        tuple[str, ...],
        Option(
            "What `penult embed` takes, one or a list, relative to the recipe's folder; {date} is the logical date."
        ),
    ]
    max_failure_rate: Annotated[
        float, Option("Share of a source's files that may fail; above it the night ends with exit code 3.")
    ] = MAX_FAILURE_RATE

    def check(self) -> None:
        """Raise UsageError for invalid options."""
        if not self.location or not all(self.location):
            raise UsageError("Expected: location, at least one source. Got: none.")
        check_share("max_failure_rate", self.max_failure_rate)


@dataclass(frozen=True)
class LabelsOptions:
    """Labels that people give besides those of the source."""

    file: Annotated[
        tuple[str, ...],
        Option("What `penult label` takes, one or a list; {date} as in the source. A file that is missing is skipped."),
    ] = ()
    label_set: Annotated[str, LABEL_SET] = "default"

    def check(self) -> None:
        """Raise UsageError for invalid options."""
        if not all(self.file):
            raise UsageError("Expected: file, names of files. Got: an empty one.")
        check_label_set(self.label_set)


@dataclass(frozen=True)
class ChecksOptions:
    """What is checked of the data before heads are compared: each check is off, warns, or blocks the night.

    "Since the champion" means: compared with the labelled images from which the champion was made.
    """

    failures: Annotated[str, Option("New files that failed.")] = "warn"
    failures_limit: Annotated[float, Option("Largest share of tonight's new files.")] = 0.05
    small_classes: Annotated[str, Option("Classes with few training images.")] = "warn"
    small_classes_limit: Annotated[int, Option("Least number of training images per class.")] = 5
    appeared: Annotated[str, Option("Classes that appeared since the champion.")] = "warn"
    appeared_limit: Annotated[int, Option("Largest number of such classes.")] = 0
    vanished: Annotated[str, Option("Classes that vanished since the champion.")] = "warn"
    vanished_limit: Annotated[int, Option("Largest number of such classes.")] = 0
    flips: Annotated[str, Option("Images with another label since the champion.")] = "warn"
    flips_limit: Annotated[float, Option("Largest share of the images that both nights have.")] = 0.05
    drift: Annotated[
        str, Option("New images that a classifier tells from the champion's training images of the same classes.")
    ] = "warn"
    drift_limit: Annotated[
        float, Option("Largest area under the ROC curve, 0.5 to 1; its interval must lie above to count.")
    ] = 0.8
    copies: Annotated[str, Option("Test images that are near-copies of training images.")] = "warn"
    copies_limit: Annotated[float, Option("Largest share of the test images.")] = 0.01
    copies_cosine: Annotated[
        float, Option("Least cosine of near-copies: 0.995 finds equal pictures and mild re-encodings, 0.99 more.")
    ] = 0.995
    test_shrank: Annotated[str, Option("Test images of the champion that are no longer there.")] = "warn"
    test_shrank_limit: Annotated[float, Option("Largest share of the champion's test images.")] = 0.2

    def check(self) -> None:
        """Raise UsageError for invalid options."""
        for name in CHECKS:
            _check_word(name, getattr(self, name), LEVELS)
        for name in ("failures", "flips", "copies", "test_shrank"):
            check_share(f"{name}_limit", getattr(self, f"{name}_limit"))
        for name in ("small_classes", "appeared", "vanished"):
            check_count(f"{name}_limit", getattr(self, f"{name}_limit"), 0, 10**9)
        if not 0.5 <= self.drift_limit <= 1:
            raise UsageError(f"Expected: drift_limit, from 0.5 to 1. Got: {self.drift_limit}.")
        check_share("copies_cosine", self.copies_cosine)


CHECKS = ("failures", "small_classes", "appeared", "vanished", "flips", "drift", "copies", "test_shrank")


@dataclass(frozen=True)
class PromoteOptions:
    """When tonight's head, the challenger, takes the place of the champion.

    Both are scored on the same test images. ``better``: the paired 95 % interval of the difference lies above
    ``margin``. ``not-worse``: it lies above ``-margin``.
    """

    rule: Annotated[str, Option("better, or not-worse: for more or corrected data.")] = "better"
    metric: Annotated[str, Option("top1, macro_f1 or mean_recall.")] = "top1"
    margin: Annotated[float, Option("See the rule; a share, as 0.01 for one point.")] = 0.0
    per_class_floor: Annotated[
        float | None, Option("Recall below which no class may fall, unless the champion's is as low.")
    ] = None
    min_test_images: Annotated[int, Option("With fewer test images the champion stays.")] = 20

    def check(self) -> None:
        """Raise UsageError for invalid options."""
        _check_word("rule", self.rule, RULES)
        _check_word("metric", self.metric, METRICS)
        check_share("margin", self.margin)
        if self.per_class_floor is not None:
            check_share("per_class_floor", self.per_class_floor)
        check_count("min_test_images", self.min_test_images, 1, 10**9)


@dataclass(frozen=True)
class PublishOptions:
    """Where a new champion is exported to."""

    to: Annotated[str | None, Option("A folder: one sub-folder per version, and the link `current` to the newest.")] = (
        None
    )
    format: Annotated[str, Option("keras, saved_model, onnx, openvino or litert.")] = "keras"

    def check(self) -> None:
        """Raise UsageError for invalid options."""
        if self.to is not None:
            from pipelines.export import FORMATS

            _check_word("format", self.format, tuple(FORMATS))


@dataclass(frozen=True)
class NotifyOptions:
    """Who is told what a night did."""

    on: Annotated[tuple[str, ...], Option("After which nights.")] = (PROMOTED, BLOCKED, FAILED)
    command: Annotated[str | None, Option("Run by /bin/sh with the night's JSON on stdin and PENULT_DECISION set.")] = (
        None
    )
    url: Annotated[str | None, Option("The night's JSON is posted here.")] = None
    timeout: Annotated[float, Option("Of each attempt.", parse=budget, metavar="TIME")] = 10.0
    attempts: Annotated[int, Option("How often the URL is tried; the command is run once.")] = 3

    def check(self) -> None:
        """Raise UsageError for invalid options."""
        for event in self.on:
            _check_word("on", event, EVENTS)
        check_count("attempts", self.attempts, 1, 100)
        check_amount("timeout in seconds", self.timeout, 0.1)
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise UsageError(f"Expected: url, an http:// or https:// address. Got: {self.url!r}.")


@dataclass(frozen=True)
class KeepOptions:
    """How much of earlier nights is kept; what the champions that are kept need is never removed."""

    runs: Annotated[int, Option("Nights whose records, reports and heads are kept.")] = 30
    versions: Annotated[int, Option("Earlier champions that `penult rollback` can go back to.")] = 10
    exports: Annotated[int, Option("Published versions that are kept.")] = 5

    def check(self) -> None:
        """Raise UsageError for invalid options."""
        for name in ("runs", "versions", "exports"):
            check_count(name, getattr(self, name), 1, MAX_KEPT)


@dataclass(frozen=True)
class RetrainOptions:
    """What is given beside the recipe."""

    date: Annotated[
        datetime.date | None,
        Option("The logical date, such as 2026-11-01; by default today in UTC.", parse=calendar_date, metavar="DATE"),
    ] = None
    plan: Annotated[bool, Option("Say what would be done and what it would cost, and do nothing.", flag="--plan")] = (
        False
    )
    wait: Annotated[
        float, Option("Wait so long for another run to release the store.", parse=seconds, metavar="TIME")
    ] = 0.0
    timeout: Annotated[
        float | None, Option("End after this; the same command goes on later.", parse=budget, metavar="TIME")
    ] = None

    def check(self) -> None:
        """Raise UsageError for invalid options."""
        check_amount("--wait in seconds", self.wait)
        if self.timeout is not None:
            check_amount("--timeout in seconds", self.timeout)


def _check_word(name: str, value: str, words: tuple[str, ...]) -> None:
    if value not in words:
        raise UsageError(f"Expected: {name}, one of {', '.join(words)}. Got: {value!r}.")
