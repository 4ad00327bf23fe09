"""The options of each job, with their defaults and help texts.

The command line is generated from these classes, Python callers construct them, and each run's record stores them.
Fields without an ``Option`` are set by the command itself or by Python callers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

from featurestore.errors import UsageError
from featurestore.limits import check_amount, check_count, check_label_set, check_seed
from featurestore.options import Option, budget, memory, share
from featurestore.spec import DTYPES
from featurestore.splits import Split
from heads.comparison.space import DEFAULT, Evaluation, Search
from heads.spec import HeadSpec
from pipelines import runners
from pipelines.backbones import DEFAULT as DEFAULT_BACKBONE
from pipelines.backbones import MIN_INPUT_SIZE, PUBLISHED
from pipelines.backbones.engine_options import EngineOptions, check_batch, check_engine
from pipelines.images.augmentation import MAX_VIEWS, Augmentation
from pipelines.sources.listing import Hints

MAX_SHARD_IMAGES = 2**20
MAX_FAILURE_RATE = 0.05  # of a source's files, unless another is asked for
SCHEDULES = ("constant", "cosine")
MAX_TOP = 1_000_000  # labels per image
MOMENTUM = 0.9  # the default for sgd

LABEL_SET = Option("Which set of labels.")
MOVED_WEIGHTS = Option("The backbone's weights file, where it has moved.", flag="--weights")

LabelSet = Annotated[str, LABEL_SET]
MovedWeights = Annotated[str | None, MOVED_WEIGHTS]


@dataclass(frozen=True)
class EmbedOptions:
    """How to embed a corpus."""

    backbone: Annotated[str, Option("One of `penult backbones`, or ft:ID, a fine-tuned one.")] = DEFAULT_BACKBONE
    weights: Annotated[str, Option(f"'{PUBLISHED}' or a weights file.")] = PUBLISHED
    layer: Annotated[str | None, Option("Layer to tap; by default the last one before the classifier.")] = None
    pooling: Annotated[str, Option("avg, max or none (flatten) over a layer's positions.")] = "avg"
    input_size: Annotated[int | None, Option("Side in pixels; by default the backbone's own.")] = None
    crop: str = "squash"
    engine: EngineOptions = EngineOptions()
    dtype: Annotated[str, Option("Stored as float16 or float32.")] = "float16"
    shard_images: Annotated[
        int | None, Option("Images per shard: what a kill can cost at most; by default what takes about 10 seconds.")
    ] = None
    label_set: LabelSet = "default"
    retry_failed: Annotated[
        bool,
        Option("Try files that failed before as well; by default they are left alone.", flag="--retry-failed"),
    ] = False
    split_folders: Annotated[
        bool, Option("Take folders named train, val and test for classes.", flag="--no-split-folders")
    ] = True
    image_column: Annotated[
        str | None, Option("Column of a table with the images, or of a manifest with their paths; by default a guess.")
    ] = None
    label_column: Annotated[str | None, Option("Column with the labels; by default a guess by its name.")] = None
    max_removed: Annotated[
        float,
        Option("Share of a source's images: where a listing lacks more, none is removed and the exit code is 3."),
    ] = 0.5
    accept_removed: Annotated[
        bool, Option("Remove what the source no longer lists, however much it is.", flag="--accept-removed")
    ] = False
    views: int = 0  # random views per image, made with ``augmentation``; 0 embeds the images themselves
    augmentation: Augmentation | None = None
    runner: Annotated[str, Option(f"Beam runner: {runners.NAMES}.")] = runners.IN_PROCESS
    runner_arguments: tuple[str, ...] = ()

    @property
    def hints(self) -> Hints:
        """What is said of the source where a guess would be wrong."""
        return Hints(self.split_folders, self.image_column, self.label_column)

    def check(self) -> None:
        """Raise UsageError for invalid options."""
        check_share("--max-removed", self.max_removed)
        if self.shard_images is not None:
            check_count("--shard-images", self.shard_images, 1, MAX_SHARD_IMAGES)
        check_count("--views", self.views, 0, MAX_VIEWS)
        check_label_set(self.label_set)
        if self.dtype not in DTYPES:
            raise UsageError(f"Expected: --dtype {' or '.join(DTYPES)}. Got: {self.dtype!r}.")
        if bool(self.views) != (self.augmentation is not None):
            raise UsageError("Views need an augmentation, and an augmentation needs views.")
        if self.augmentation is not None:
            self.augmentation.check()
        runners.find(self.runner).check(self.runner_arguments)

    def to_json(self) -> dict[str, Any]:
        """Return the options as a run's record stores them: those of the engine flattened, as in older records."""
        told = asdict(self)
        return told | told.pop("engine")

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> EmbedOptions:
        """Return the options of a run's record; what an older record lacks is at its default."""
        known = {field.name: told[field.name] for field in fields(cls) if field.name in told}
        known["engine"] = EngineOptions(**{f.name: told[f.name] for f in fields(EngineOptions) if f.name in told})
        if known.get("augmentation"):
            known["augmentation"] = Augmentation(**known["augmentation"])
        return cls(**known)


@dataclass(frozen=True)
class FitData:
    """Which stored features to fit on, and how to split images for which the corpus gives no split."""

    feature_set: Annotated[
        str | None, Option("Feature set, by name or its beginning; by default the newest.", flag="--set")
    ] = None
    label_set: LabelSet = "default"
    split: Split = Split()
    views: Annotated[int, Option("Train on this many stored views of each image too.")] = 0
    views_set: Annotated[str | None, Option("The set that holds the views, where there are several.")] = None

    def check(self) -> None:
        """Raise UsageError for values that are invalid for every store."""
        self.split.check()
        check_label_set(self.label_set)
        check_count("--views", self.views, 0, MAX_VIEWS)

    def to_json(self) -> dict[str, Any]:
        """Return the options as a run's record stores them: the split flattened, as in older records."""
        told = asdict(self)
        split = told.pop("split")
        return told | {"val": split["val"], "test": split["test"], "split_seed": split["seed"]}

    @classmethod
    def from_json(cls, told: Mapping[str, Any], feature_set: str) -> FitData:
        """Return the label set and the split of a run's record, for a feature set, without views."""
        return cls(feature_set, told["label_set"], Split(told["val"], told["test"], told["split_seed"]))


@dataclass(frozen=True)
class ReportOptions:
    """What to write about heads besides the run's record."""

    gallery_seed: Annotated[int, Option("Another seed, other images in the report.")] = 0
    tensorboard: Annotated[Path | None, Option("Write event files into a sub-folder of this one.")] = None

    def check(self) -> None:
        """Raise UsageError for invalid options, before features are read."""
        check_seed("--gallery-seed", self.gallery_seed)
        if self.tensorboard is not None:
            from heads.reporting import tensorboard

            tensorboard.check(self.tensorboard)


@dataclass(frozen=True)
class TrackOptions:
    """An MLflow server or database that gets one run per night, comparison or training; needs the extra ``track``."""

    uri: Annotated[str | None, Option("MLflow's tracking URI, such as sqlite:///mlflow.db.", metavar="URI")] = None
    experiment: Annotated[str, Option("Name of the MLflow experiment.", metavar="NAME")] = "penult"

    def check(self) -> None:
        """Raise UsageError for invalid options."""
        if not self.experiment:
            raise UsageError("Expected: experiment, a name. Got: none.")


@dataclass(frozen=True)
class TrainOptions:
    """One head to train; ``params`` maps the family's parameters to values, and the rest have the family's defaults."""

    head: Annotated[str, Option("One of `penult heads`.")] = "logreg"
    params: Mapping[str, Any] = field(default_factory=dict)
    class_weight: Annotated[str | None, Option("'balanced' weighs rare classes up.")] = None
    seed: Annotated[int, Option("Of everything random in the fit.")] = 0
    data: FitData = FitData()
    report: ReportOptions = ReportOptions()
    list_misclassified: Annotated[
        bool, Option("List the test images that the head gets wrong.", flag="--print-misclassified")
    ] = False

    @property
    def spec(self) -> HeadSpec:
        """The head to train."""
        return HeadSpec(self.head, self.params, self.class_weight)

    def check(self) -> None:
        """Raise UsageError for options with which no head can be fitted, before features are read."""
        from heads import registry

        registry.complete(self.head, self.params)
        registry.check_weight(self.head, self.class_weight)
        check_seed("--seed", self.seed)
        self.data.check()
        self.report.check()


@dataclass(frozen=True)
class CompareOptions:
    """Which heads to compare, on which features, and how.

    Attributes:
        search: families, parameters and class weights to try.
        evaluation: how to evaluate them.
        sets: several feature sets to compare with one another, instead of the set of ``data``.
    """

    search: Search = DEFAULT
    evaluation: Evaluation = Evaluation()
    memory_limit: Annotated[
        int | None,
        Option(
            "Stream training features that take more than half of this, such as 4GB.",
            parse=memory,
            metavar="SIZE",
        ),
    ] = None
    sets: tuple[str, ...] = ()
    data: FitData = FitData()
    report: ReportOptions = ReportOptions()

    def check(self) -> None:
        """Raise UsageError for options with which no comparison can be made, before features are read."""
        self.evaluation.check()
        if self.memory_limit is not None:
            check_amount("--memory-limit in bytes", self.memory_limit, 1)
        self.data.check()
        self.report.check()


@dataclass(frozen=True)
class PredictOptions:
    """How to predict. The precision is the feature set's own and the batch size the engine's own."""

    top: Annotated[int, Option("How many labels to give.")] = 5
    weights: MovedWeights = None
    engine: Annotated[EngineOptions, {"precision": None, "batch_size": None}] = EngineOptions()

    def check(self) -> None:
        """Raise UsageError for invalid options, before a head is looked up."""
        check_count("--top", self.top, 1, MAX_TOP)
        check_engine(self.engine.engine)


@dataclass(frozen=True)
class ExportOptions:
    """How to export a head with its backbone."""

    format: Annotated[str, Option("keras, saved_model, onnx, openvino or litert.")] = "keras"
    weights: MovedWeights = None


@dataclass(frozen=True)
class FinetuneOptions:
    """How to fine-tune a backbone with its head.

    The seed of ``augmentation`` also decides the order of the training images and the dropout.
    """

    unfreeze_from: Annotated[
        str, Option("Train from this layer of the backbone on; `penult backbones NAME` lists them.")
    ]
    optimizer: Annotated[str, Option("sgd, rmsprop, adam or adamw.")] = "sgd"
    learning_rate: Annotated[float, Option("Of the optimizer.")] = 1e-4
    schedule: Annotated[str, Option("Of the learning rate: constant, or cosine towards 0.")] = "constant"
    momentum: Annotated[float | None, Option("Of sgd; 0.9 if not given.")] = None
    epochs: Annotated[int, Option("How often each training image is seen.")] = 20
    batch_size: Annotated[int, Option("Images per step.")] = 32
    augmentation: Annotated[Augmentation, {"seed": Option("Of the views, the order of images and dropout.")}] = (
        Augmentation()
    )

    def check(self) -> None:
        """Raise UsageError for invalid options."""
        from heads.families.dense import MAX_EPOCHS, OPTIMIZERS

        if self.optimizer not in OPTIMIZERS:
            raise UsageError(f"Expected: --optimizer {', '.join(OPTIMIZERS)}. Got: {self.optimizer!r}.")
        if not 0 < self.learning_rate < float("inf"):
            raise UsageError(f"Expected: --learning-rate above 0. Got: {self.learning_rate}.")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"Expected: --schedule {' or '.join(SCHEDULES)}. Got: {self.schedule!r}.")
        if self.momentum is not None and self.optimizer != "sgd":
            raise UsageError(f"--momentum is of sgd: leave it out with --optimizer {self.optimizer}.")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise UsageError(f"Expected: --momentum from 0 to below 1. Got: {self.momentum}.")
        check_count("--epochs", self.epochs, 1, MAX_EPOCHS)
        check_batch(self.batch_size, MIN_INPUT_SIZE)
        self.augmentation.check()

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 1.

        The cosine schedule is that of Loshchilov & Hutter 2017, "SGDR" (arXiv:1608.03983).
        """
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * (1 + math.cos(math.pi * (epoch - 1) / self.epochs)) / 2

    def settings(self) -> dict[str, float]:
        """Return the optimizer's settings, as Keras names them."""
        rate = {"learning_rate": self.learning_rate}
        if self.optimizer != "sgd":
            return rate
        return rate | {"momentum": MOMENTUM if self.momentum is None else self.momentum}


# What a trial does not ask: each backbone has its own, or it is the trial's to say.
_NOT_OF_A_TRIAL = dict.fromkeys(
    ("backbone", "weights", "layer", "pooling", "input_size", "shard_images", "retry_failed", "runner")
)


@dataclass(frozen=True)
class TrialOptions:
    """Which backbones to try on a sample of a corpus, how, and when to stop.

    Attributes:
        backbones: their names; the first is the one in use, and the others are compared with it.
        embed: how to embed, but for the backbone; its ``label_set`` holds the labels.
    """

    backbones: tuple[str, ...] = ()
    max_share: Annotated[
        float, Option("Embed at most this share of the labelled images, 0.05 or 5%.", parse=share, metavar="SHARE")
    ] = 0.05
    margin: Annotated[float, Option("Backbones whose accuracies differ by fewer points than this count as tied.")] = 0.5
    budget: Annotated[
        float | None, Option("Begin no further look after 60s, 5m or 1h of embedding.", parse=budget, metavar="TIME")
    ] = None
    seed: Annotated[int, Option("Another seed, another sample.")] = 0
    max_failure_rate: Annotated[float, Option("Share of failed files that ends in exit code 3.")] = MAX_FAILURE_RATE
    split: Split = Split()
    embed: Annotated[EmbedOptions, _NOT_OF_A_TRIAL] = EmbedOptions()

    def check(self) -> None:
        """Raise UsageError for options with which no trial can be made, before anything is read."""
        names = self.backbones
        if len(names) < 2:
            raise UsageError(
                f"Expected: at least two --backbone, the one in use first. Got: {names[0] if names else 'none'}."
            )
        if twice := next((name for at, name in enumerate(names) if name in names[:at]), None):
            raise UsageError(f"Expected: each --backbone once. Got: {twice} twice.")
        if not 0 < self.max_share <= 1:
            raise UsageError(f"Expected: --max-share, a share above 0. Got: {self.max_share}.")
        check_amount("--margin in points", self.margin)
        if self.budget is not None:
            check_amount("--budget in seconds", self.budget)
        check_seed("--seed", self.seed)
        check_share("--max-failure-rate", self.max_failure_rate)
        self.split.check()
        self.embed.check()

    def to_json(self) -> dict[str, Any]:
        """Return the options as a run's record stores them."""
        told = asdict(replace(self, embed=EmbedOptions()))
        for name in ("split", "embed"):
            del told[name]
        embedded = self.embed.to_json()
        split = {"val": self.split.val, "test": self.split.test, "split_seed": self.split.seed}
        return {**told, **split, **{name: embedded[name] for name in embedded if name not in _NOT_OF_A_TRIAL}}


def check_share(option: str, value: float) -> None:
    """Raise UsageError unless ``value`` is a share from 0 to 1."""
    if not 0 <= value <= 1:  # written so that NaN fails too
        raise UsageError(f"Expected: {option}, a share from 0 to 1. Got: {value}.")
