"""What an embed run did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from featurestore.errors import TooManyFailures, TooManyRemoved
from featurestore.journal import ShardEntry
from pipelines.options import EmbedOptions, check_share

STAGES = ("plan", "read", "decode", "infer", "write", "commit", "total")


@dataclass
class EmbedResult:
    """What an embed run did; ``to_json`` is the contract of ``--json``."""

    run_id: str
    feature_set: str
    fingerprint: str
    seen: int = 0
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    deduplicated: int = 0
    embedded: int = 0
    failed: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    failed_before: int = 0  # how many of the unchanged files failed in an earlier run
    labels_changed: int = 0
    source: str = ""  # the source's identity, a URI
    listed_before: int = 0  # how many images the source listed the last time
    removed: int = 0  # images that no source lists any more
    not_removed: int = 0  # images that the source no longer lists, but that stay because they are too many
    labels: dict[str, Any] = field(default_factory=dict)  # of the source: classes, unlabelled, splits, changed
    columns: dict[str, str] = field(default_factory=dict)  # of a manifest: the name of the column for each role
    notes: list[str] = field(default_factory=list)  # how the source was read
    recovered: list[str] = field(default_factory=list)  # dead runs whose finished shards were committed first
    ignored: dict[str, int] = field(default_factory=dict)  # number of files that are not images, by extension
    problems: list[str] = field(default_factory=list)  # folders that could not be listed and the like
    seconds: dict[str, float] = field(default_factory=dict)
    workers: dict[str, dict[str, Any]] = field(default_factory=dict)  # by name: shards, images, failures, seconds
    images_per_second: float = 0.0

    @property
    def failure_rate(self) -> float:
        """Share of the corpus's files that failed, in this run or an earlier one."""
        return (self.failed + self.failed_before) / max(self.seen, 1)

    def check(self, max_failure_rate: float, max_removed: float = EmbedOptions.max_removed) -> None:
        """Raise TooManyFailures or TooManyRemoved if a share is above its limit, UsageError if a limit is no share."""
        check_share("--max-failure-rate", max_failure_rate)
        if self.not_removed:
            raise TooManyRemoved(
                f"{self.not_removed:,} of the {self.listed_before:,} images of {self.source} are no longer listed "
                f"({self.not_removed / self.listed_before:.1%}), more than --max-removed {max_removed}: none was "
                "removed and everything new is kept; check that the source is whole, or give --accept-removed."
            )
        if self.failure_rate > max_failure_rate:
            raise TooManyFailures(
                f"{self.failed + self.failed_before} of {self.seen} files failed ({self.failure_rate:.1%}), more than "
                f"--max-failure-rate {max_failure_rate}: everything good is kept; `penult status` says why, "
                "--retry-failed tries them again."
            )

    def count(self, entries: Iterable[ShardEntry]) -> None:
        """Add what finished shards did, and their seconds per stage."""
        for entry in entries:
            self.embedded += entry.embedded
            self.deduplicated += entry.deduplicated
            self.failures = dict(Counter(self.failures) + Counter(entry.failures))
            for stage in STAGES:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + entry.seconds.get(stage, 0.0)
            self._count_worker(entry)
        self.failed = sum(self.failures.values())

    def _count_worker(self, entry: ShardEntry) -> None:
        told = self.workers.setdefault(
            entry.worker or "unknown", {"shards": 0, "images": 0, "failures": {}, "seconds": {}}
        )
        told["shards"] += 1
        told["images"] += entry.images
        told["failures"] = dict(Counter(told["failures"]) + Counter(entry.failures))
        told["seconds"] = {
            stage: round(told["seconds"].get(stage, 0.0) + entry.seconds[stage], 3)
            for stage in STAGES
            if stage in entry.seconds
        }

    def finish(self, **seconds: float) -> None:
        """Note the seconds of stages that are no shard's, and round all of them."""
        took = self.seconds | seconds
        self.seconds = {stage: round(took.get(stage, 0.0), 3) for stage in STAGES}
        self.images_per_second = round(self.embedded / took["total"], 1)

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``penult embed --json`` prints."""
        return asdict(self)
