"""The command line: parse, call one public function, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from featurestore.errors import ImageError, PenultError, StoreCorrupt, UsageError
from featurestore.splits import TEST_SHARE, VAL_SHARE
from featurestore.storage.files import trouble

RUNNER_ARGUMENTS = "penult.runner_arguments"  # in click's context

app = typer.Typer(
    name="penult",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 110},
    help="Embed an image corpus once with a frozen CNN, keep the features, train and compare heads in seconds.",
    epilog="Exit codes: 0 done, 1 an error, 2 usage, 3 more failures than --max-failure-rate or more images gone than "
    "--max-removed, 75 the store is locked.",
)


def _share(text: str) -> float:
    """0.1 or 10%, as a share; ``text`` may be a number, the default."""
    digits = str(text).strip()
    in_percent = digits.endswith("%")
    try:
        share = float(digits.removesuffix("%")) / (100 if in_percent else 1)
    except ValueError:
        share = math.nan
    if not 0 <= share < 1:
        is_percentage = 1 <= share < 100 and not in_percent
        percent = f" For {digits} percent say {digits}% or {share / 100:g}." if is_percentage else ""
        raise UsageError(f"Expected: a share below 1, such as 0.1 or 10%. Got: {text or 'nothing'}.{percent}")
    return share


AMOUNT = r"([0-9]+(?:\.[0-9]+)?)\s*"
TIME_UNITS = {  # seconds: every way to write each; a month is none, it has no length
    1: ("s", "sec", "secs", "second", "seconds"),
    60: ("m", "min", "mins", "minute", "minutes"),
    3600: ("h", "hr", "hrs", "hour", "hours"),
    86_400: ("d", "day", "days"),
    7 * 86_400: ("w", "week", "weeks"),
}
SECONDS = {name: seconds for seconds, names in TIME_UNITS.items() for name in names}
MAX_SECONDS = 1000 * 365 * 86_400
BYTES = {"mb": 10**6, "gb": 10**9, "tb": 10**12, "mib": 2**20, "gib": 2**30, "tib": 2**40}
MAX_BYTES = 2**60


def _seconds(text: str) -> float:
    """Seconds: 90, or amounts with units, such as 90s, 30min, 2 days or 2d12h."""
    written = str(text).strip()
    if re.fullmatch(AMOUNT, written):
        written += "s"
    parts = re.findall(rf"{AMOUNT}([a-z]+)\s*", written)
    whole = re.fullmatch(rf"(?:{AMOUNT}[a-z]+\s*)+", written)
    if not whole or any(unit not in SECONDS for _, unit in parts):
        raise UsageError(f"Expected: a time such as 90s, 30min, 12h, 2d or 1w. Got: {text or 'nothing'}.")
    seconds = sum(float(amount) * SECONDS[unit] for amount, unit in parts)
    if seconds > MAX_SECONDS:
        raise UsageError(f"Expected: a time of at most a thousand years. Got: {text}.")
    return seconds


def _budget(text: str) -> float:
    """Seconds, as ``_seconds``, but not 0."""
    seconds = _seconds(text)
    if not seconds:
        raise UsageError(f"Expected: a time above 0, such as 60s, 5m or 1h. Got: {text}.")
    return seconds


def _bytes(text: str) -> int:
    """500MB, 4GB or 2GiB, in bytes."""
    found = re.fullmatch(rf"{AMOUNT}({'|'.join(BYTES)})", text.strip(), re.IGNORECASE)
    amount = float(found[1]) * BYTES[found[2].lower()] if found else 0.0
    if not 1 <= amount <= MAX_BYTES:
        raise UsageError(f"Expected: an amount of memory such as 500MB, 4GB or 2GiB. Got: {text or 'nothing'}.")
    return int(amount)


Store = Annotated[Path, typer.Option("--store", envvar="PENULT_STORE", help="The feature store's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]
Set = Annotated[str | None, typer.Option("--set", help="Feature set, by name or its beginning; else the newest.")]
LabelSet = Annotated[str, typer.Option(help="Which set of labels.")]
Weights = Annotated[str, typer.Option(help="'imagenet' or a weights file.")]
TrainViews = Annotated[int, typer.Option("--views", help="Train on so many stored views of each picture too.")]
ViewsSet = Annotated[str | None, typer.Option(help="The set that holds them, where there are several.")]
Rotation = Annotated[float, typer.Option(help="Of a random view: up to so many degrees either way.")]
Shift = Annotated[float, typer.Option(help="… moved by up to this share of the side.")]
Shear = Annotated[float, typer.Option(help="… sheared by up to so many degrees.")]
Zoom = Annotated[float, typer.Option(help="… each axis scaled by a factor of 1 ± this.")]
Flip = Annotated[str, typer.Option(help="… none, horizontal, vertical or both: half of the views are flipped.")]
Fill = Annotated[str, typer.Option(help="… beyond the border: nearest, reflect or black.")]
Engine = Annotated[str, typer.Option(help="openvino (CPU) or tensorflow (anywhere).")]
ClassWeight = Annotated[str | None, typer.Option(help="'balanced' weighs rare classes up.")]
Val = Annotated[
    float,
    typer.Option(parser=_share, metavar="SHARE", help="Validation's share, 0.1 or 10%, where the corpus names none."),
]
Test = Annotated[
    float, typer.Option(parser=_share, metavar="SHARE", help="Test's share, 0.1 or 10%, where the corpus names none.")
]
SplitSeed = Annotated[int, typer.Option(help="Another seed, another split.")]
GallerySeed = Annotated[int, typer.Option(help="Another seed, other pictures in the report.")]
TensorBoard = Annotated[
    Path | None,
    typer.Option("--tensorboard", file_okay=False, help="Write event files into a sub-folder of this one."),
]


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to write; made if need be.")] = Path("penult-demo"),
    as_json: Json = False,
) -> None:
    """Embed a small real corpus, compare heads, write a report.

    The corpus is scikit-learn's handwritten digits, 1,797 pictures in ten class folders.
    """
    from pipelines import show
    from pipelines.demo import write_digits
    from pipelines.embedding.embed import embed
    from pipelines.training import compare_heads

    corpus, store = folder / "digits", folder / "store"
    show.say(f"Writing scikit-learn's handwritten digits to {corpus}.")
    write_digits(corpus)
    with show.bar("embed") as progress:
        embedded = embed(str(corpus), store, progress=progress)
    show.embedded(embedded)
    with show.bar("compare") as progress:
        compared = compare_heads(store, progress=progress)
    show.compared(compared)
    show.say(
        f"\nThe store is {store}. Try:\n"
        f"  penult status --store {store}\n"
        f"  penult predict {corpus / '7' / '0007.png'} --store {store}"
    )
    _print_json(as_json, {"embed": embedded.to_json(), "compare": compared})


class _RunnerCommand(TyperCommand):
    """A command whose words after ``--`` are the Beam runner's, and no sources."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep what is after ``--`` apart."""
        if "--" in args:
            at = args.index("--")
            args, ctx.meta[RUNNER_ARGUMENTS] = args[:at], tuple(args[at + 1 :])
        return super().parse_args(ctx, args)


@app.command(cls=_RunnerCommand)
def embed(
    context: typer.Context,
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE... [-- RUNNER OPTIONS]",
            help="Folders (a sub-folder per class), manifests (.csv, .tsv, .parquet) or .tar shards; "
            "after --, options of the Beam runner.",
        ),
    ],
    store: Store,
    backbone: Annotated[str, typer.Option(help="One of `penult backbones`, or ft:ID.")] = "efficientnet-lite0",
    weights: Weights = "imagenet",
    layer: Annotated[str | None, typer.Option(help="Layer to tap; else the last one before the classifier.")] = None,
    pooling: Annotated[str, typer.Option(help="avg, max or none (flatten) over a layer's positions.")] = "avg",
    input_size: Annotated[int | None, typer.Option(help="Side in pixels; else the backbone's own.")] = None,
    squash: Annotated[bool, typer.Option("--squash", help="A rectangle becomes a square whole (the default).")] = False,
    center_crop: Annotated[bool, typer.Option("--center-crop", help="… by its largest central square.")] = False,
    pad: Annotated[bool, typer.Option("--pad", help="… whole and in shape, with black added.")] = False,
    precision: Annotated[str, typer.Option(help="f32, or bf16 where the CPU has it: another feature set.")] = "f32",
    dtype: Annotated[str, typer.Option(help="Stored as float16 or float32.")] = "float16",
    engine: Engine = "openvino",
    batch_size: Annotated[int | None, typer.Option(help="Images a forward pass; else the engine's own.")] = None,
    shard_images: Annotated[int, typer.Option(help="Images a shard: what a kill can cost at most.")] = 4096,
    views: Annotated[int, typer.Option(help="Embed also so many random views of each picture, for training.")] = 0,
    rotation: Rotation = 15.0,
    shift: Shift = 0.1,
    shear: Shear = 0.0,
    zoom: Zoom = 0.1,
    flip: Flip = "horizontal",
    fill: Fill = "nearest",
    view_seed: Annotated[int, typer.Option(help="Another seed, other views.")] = 0,
    label_set: LabelSet = "default",
    max_failure_rate: Annotated[float, typer.Option(help="Share of failed files that ends in exit code 3.")] = 0.05,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try files that failed before as well; else they are left alone.")
    ] = False,
    max_removed: Annotated[
        float,
        typer.Option(
            help="Share of a source's images: where a listing lacks more, none is removed and the exit code is 3.",
        ),
    ] = 0.5,
    accept_removed: Annotated[
        bool, typer.Option("--accept-removed", help="Remove what the source no longer lists, however much it is.")
    ] = False,
    no_split_folders: Annotated[
        bool, typer.Option("--no-split-folders", help="Take folders named train, val and test for classes.")
    ] = False,
    runner: Annotated[str, typer.Option(help="Beam runner: FnApiRunner or FlinkRunner.")] = "FnApiRunner",
    as_json: Json = False,
) -> None:
    """Embed what the store lacks of a corpus.

    A second run over the same files embeds nothing. Files that cannot be read become rows that say why.
    """
    from dataclasses import replace

    from pipelines import show
    from pipelines.embedding.embed import EmbedOptions, check_failure_rate
    from pipelines.embedding.embed import embed as run
    from pipelines.images.augment import Augmentation
    from pipelines.sources.corpus import list_source

    options = EmbedOptions(
        backbone=backbone,
        weights=weights,
        layer=layer,
        pooling=pooling,
        input_size=input_size,
        crop=_crop(squash, center_crop, pad),
        precision=precision,
        dtype=dtype,
        engine=engine,
        batch_size=batch_size,
        shard_images=shard_images,
        label_set=label_set,
        retry_failed=retry_failed,
        max_removed=max_removed,
        accept_removed=accept_removed,
        split_folders=not no_split_folders,
        runner=runner,
        runner_arguments=context.meta.get(RUNNER_ARGUMENTS, ()),
    )
    drawn = Augmentation(rotation, shift, shear, zoom, flip, fill, view_seed)
    drawn.check()
    check_failure_rate(max_failure_rate)
    if views:  # refused now, not after the pictures themselves are embedded
        replace(options, views=views, augmentation=drawn).check()
    for one in source:
        list_source(one)  # a mistake in the last is said before the work for the first
    results = []
    for one in source:
        with show.bar("embed") as progress:
            results.append([run(one, store, options, progress)])
        show.embedded(results[-1][0])
        if views:
            with show.bar("views") as progress:
                results[-1].append(run(one, store, replace(options, views=views, augmentation=drawn), progress))
            show.embedded(results[-1][1])
    told = [one.to_json() | ({"views": more[0].to_json()} if more else {}) for one, *more in results]
    _print_json(as_json, told[0] if len(told) == 1 else {"sources": told})
    for result, *_ in results:
        result.check(max_failure_rate, max_removed)


@app.command()
def status(
    store: Store,
    failed: Annotated[bool, typer.Option("--failed", help="List the files that failed, with the reasons.")] = False,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the list of --failed to a CSV file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what the store holds.

    Sources and what they list, feature sets with their coverage, failures by reason, labels, runs, bytes on disk.
    """
    from featurestore.status import failed_files
    from featurestore.status import status as count
    from featurestore.store import FeatureStore
    from pipelines import show

    if csv is not None and not failed:
        raise UsageError("--csv goes with --failed: give both.")
    opened = FeatureStore(store)
    if not failed:
        counted = count(opened)
        show.status(counted)
        _print_json(as_json, counted)
        return
    files = failed_files(opened)
    if csv is None:
        show.failed(files)
    else:
        show.write_csv(csv, files)
    _print_json(as_json, {"failed": files})


@app.command()
def forget(
    store: Store,
    source: Annotated[
        str | None, typer.Argument(help="A source of `penult status`, as it was given to `penult embed`.")
    ] = None,
    unknown_origin: Annotated[
        bool,
        typer.Option("--unknown-origin", help="Forget the images of which an older penult did not note the source."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Forget a source.

    Images that no other source lists are removed: they are in no training, report or count. Their features stay until
    `penult gc`, so that embedding the source again costs nothing.
    """
    from pipelines import show
    from pipelines.embedding.forget import forget as run

    result = run(store, source, unknown_origin=unknown_origin)
    show.forgotten(result)
    _print_json(as_json, result)


@app.command()
def label(
    file: Annotated[str, typer.Argument(help="CSV, TSV or Parquet: path or uri, and any of label, split, group.")],
    store: Store,
    label_set: LabelSet = "default",
    withdraw: Annotated[
        bool,
        typer.Option(
            "--withdraw", help="Take back what was said of these images: what their sources say counts again."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Import labels, splits and groups.

    Nothing is embedded. They lie over what the sources say, until they are withdrawn. Each column speaks for itself: a
    column that the file lacks, or an empty cell, changes nothing.
    """
    from pipelines import show
    from pipelines.embedding.labels import import_labels

    result = import_labels(file, store, label_set, withdraw=withdraw)
    show.labelled(result)
    _print_json(as_json, result.to_json())


@app.command()
def train(
    store: Store,
    head: Annotated[str, typer.Option(help="One of `penult heads`.")] = "logreg",
    C: Annotated[float | None, typer.Option("--C", help="logreg, svm, rbf-svm: smaller is more regular.")] = None,
    hidden: Annotated[str | None, typer.Option(help="dense: widths of the hidden layers, as 1024,512.")] = None,
    dropout: Annotated[float | None, typer.Option(help="dense: share of each hidden layer left out.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="dense: adam, adamw, rmsprop or sgd.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="dense: of the optimizer.")] = None,
    epochs: Annotated[int | None, typer.Option(help="dense: at most this many.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="dense: rows a step.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="dense: epochs without a better validation loss; 0 never stops early.")
    ] = None,
    param: Annotated[list[str] | None, typer.Option(help="A parameter of the head, NAME=VALUE; repeatable.")] = None,
    class_weight: ClassWeight = None,
    seed: Annotated[int, typer.Option(help="Of everything random in the fit.")] = 0,
    feature_set: Set = None,
    label_set: LabelSet = "default",
    val: Val = VAL_SHARE,
    test: Test = TEST_SHARE,
    split_seed: SplitSeed = 0,
    views: TrainViews = 0,
    views_set: ViewsSet = None,
    gallery_seed: GallerySeed = 0,
    tensorboard: TensorBoard = None,
    print_misclassified: Annotated[
        bool, typer.Option("--print-misclassified", help="List the test pictures that the head gets wrong.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train one head on stored features.

    It is scored on the test split and kept under the run's id. Options that begin with the name of a head are that
    head's parameters; what is not given is at the default that `penult heads` lists.
    """
    from pipelines import show
    from pipelines.training import FitData, train_head

    data = FitData(feature_set, label_set, val, test, split_seed, views, views_set)
    options = {
        "C": C,
        "hidden": None if hidden is None else _widths(hidden),
        "dropout": dropout,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "epochs": epochs,
        "batch_size": batch_size,
        "patience": patience,
    }
    result = train_head(
        store,
        head,
        _parameters(param, options),
        class_weight,
        seed,
        data,
        gallery_seed=gallery_seed,
        tensorboard_folder=tensorboard,
        list_misclassified=print_misclassified,
    )
    show.trained(result)
    _print_json(as_json, result)


@app.command(context_settings={"allow_extra_args": True})  # more nets of --hidden
def compare(
    context: typer.Context,
    store: Store,
    heads: Annotated[str | None, typer.Option(help="Families, comma-separated; else all that suit the data.")] = None,
    C: Annotated[
        str | None, typer.Option("--C", help="Values of C, as 0.01,0.1 or 1e-4:1e2:13 (13 from 1e-4 to 1e2).")
    ] = None,
    hidden: Annotated[
        list[str] | None, typer.Option(help="Widths of a dense net's hidden layers, as 256 512,256 for two nets.")
    ] = None,
    class_weight: Annotated[
        str | None, typer.Option(help="none, balanced, or none,balanced to try both; else what suits the data.")
    ] = None,
    search: Annotated[
        Path | None, typer.Option(help="TOML file: [heads.NAME] with lists of values; in place of the options above.")
    ] = None,
    cv: Annotated[int, typer.Option(help="Choose by so many folds of train, not on validation.")] = 0,
    seeds: Annotated[int, typer.Option(help="How many seeds for heads whose fit is random.")] = 1,
    fewshot_k: Annotated[
        str | None, typer.Option(help="Also train on so few images a class, as 1,5,10, each drawn anew three times.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(parser=_budget, metavar="TIME", help="Begin nothing more after 60s, 5m or 1h."),
    ] = None,
    memory_limit: Annotated[
        int | None,
        typer.Option(
            parser=_bytes, metavar="SIZE", help="Stream training features that take more than half of 500MB, 4GB, …"
        ),
    ] = None,
    feature_set: Annotated[
        list[str] | None, typer.Option("--set", help="Feature set, by name or its beginning; several: which is better?")
    ] = None,
    label_set: LabelSet = "default",
    val: Val = VAL_SHARE,
    test: Test = TEST_SHARE,
    split_seed: SplitSeed = 0,
    views: TrainViews = 0,
    views_set: ViewsSet = None,
    gallery_seed: GallerySeed = 0,
    tensorboard: TensorBoard = None,
    as_json: Json = False,
) -> None:
    """Compare many heads and write a report.

    Heads are ranked on the validation split, or over folds; the winner alone is scored, once, on the test split, and
    kept. Fits that are done are kept too: the same command goes on where it was interrupted, and makes no fit twice.
    """
    from heads.comparison import search as searches
    from pipelines import show
    from pipelines.training import FitData, compare_heads

    if context.args and not hidden:
        raise UsageError(f"Expected: an option. Got: {context.args[0]!r}; `penult compare --help` lists them.")
    if search is not None and any(option is not None for option in (heads, C, hidden, class_weight)):
        raise UsageError("--search is in place of --heads, --C, --hidden and --class-weight: leave those out.")
    asked = (
        searches.from_file(search)
        if search is not None
        else searches.from_options(
            None if heads is None else heads.split(","),
            None if C is None else searches.numbers(C),
            [_widths(net) for nets in (*(hidden or ()), *context.args) for net in nets.split() or [""]],
            () if class_weight is None else [searches.class_weight(weight) for weight in class_weight.split(",")],
        )
    )
    sets = feature_set or []
    data = FitData(sets[0] if len(sets) == 1 else None, label_set, val, test, split_seed, views, views_set)
    with show.bar("compare") as progress:
        result = compare_heads(
            store,
            asked,
            data,
            progress,
            sets=sets if len(sets) > 1 else (),
            seeds=range(seeds),
            folds=cv,
            fewshot=() if fewshot_k is None else _counts("--fewshot-k", fewshot_k),
            budget=budget,
            memory_limit=memory_limit,
            gallery_seed=gallery_seed,
            tensorboard_folder=tensorboard,
        )
    show.compared(result)
    _print_json(as_json, result)


@app.command()
def finetune(
    store: Store,
    unfreeze_from: Annotated[
        str, typer.Option(help="Train from this layer of the backbone on; `penult backbones NAME` lists them.")
    ],
    head: Annotated[
        str | None,
        typer.Option(help="Id of a linear or dense head, or how it begins or ends; else the newest not fine-tuned."),
    ] = None,
    optimizer: Annotated[str, typer.Option(help="sgd, rmsprop, adam or adamw.")] = "sgd",
    learning_rate: Annotated[float, typer.Option(help="Of the optimizer.")] = 1e-4,
    schedule: Annotated[str, typer.Option(help="Of the learning rate: constant, or cosine towards 0.")] = "constant",
    momentum: Annotated[float | None, typer.Option(help="Of sgd; 0.9 if not given.")] = None,
    rotation: Rotation = 0.0,
    shift: Shift = 0.0,
    shear: Shear = 0.0,
    zoom: Zoom = 0.0,
    flip: Flip = "none",
    fill: Fill = "nearest",
    epochs: Annotated[int, typer.Option(help="How often each training picture is seen.")] = 20,
    batch_size: Annotated[int, typer.Option(help="Pictures a step.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the views, the order of pictures and dropout.")] = 0,
    weights: Annotated[str | None, typer.Option(help="The backbone's weights file, where it has moved.")] = None,
    as_json: Json = False,
) -> None:
    """Train the backbone's last layers further, with a head.

    The best epoch on validation becomes a backbone, ft:ID, and a head on its features. Killed, the same command goes
    on after the last whole epoch.
    """
    from pipelines import show
    from pipelines.finetuning.finetune import FinetuneOptions
    from pipelines.finetuning.finetune import finetune as run
    from pipelines.images.augment import Augmentation

    options = FinetuneOptions(
        unfreeze_from=unfreeze_from,
        optimizer=optimizer,
        learning_rate=learning_rate,
        schedule=schedule,
        momentum=momentum,
        epochs=epochs,
        batch_size=batch_size,
        augmentation=Augmentation(rotation, shift, shear, zoom, flip, fill, seed),
    )
    with show.bar("finetune") as progress:
        result = run(store, head, options, weights, progress, show.say)
    show.finetuned(result)
    _print_json(as_json, result)


@app.command()
def predict(
    images: Annotated[list[str], typer.Argument(help="Picture files.")],
    store: Store,
    head: Annotated[
        str | None, typer.Option(help="Id of a head, or how it begins or ends; else the newest of `penult runs`.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many labels to give.")] = 5,
    weights: Annotated[str | None, typer.Option(help="The backbone's weights file, where it has moved.")] = None,
    engine: Engine = "openvino",
    as_json: Json = False,
) -> None:
    """Label pictures with a trained head.

    Only what the store lacks is embedded; nothing is written.
    """
    from pipelines import show
    from pipelines.predict import predict as run

    predictions = run(images, store, head, top=top, weights=weights, engine=engine)
    show.predicted(predictions)
    _print_json(as_json, [prediction.to_json() for prediction in predictions])
    failed = [p for p in predictions if p.error]
    if failed:
        raise ImageError(str(failed[0].error_type), f"{len(failed)} of {len(predictions)} pictures got no label.")


@app.command()
def export(
    store: Store,
    to: Annotated[Path, typer.Option(help="The folder to make: the model, labels.txt, model.json.")],
    head: Annotated[
        str | None, typer.Option(help="Id of a head, or how it begins or ends; else the newest of `penult runs`.")
    ] = None,
    format: Annotated[str, typer.Option(help="keras, saved_model, onnx, openvino or litert.")] = "keras",
    weights: Annotated[str | None, typer.Option(help="The backbone's weights file, where it has moved.")] = None,
    as_json: Json = False,
) -> None:
    """Export a head and its backbone as one model.

    uint8 pixels in, probabilities out. Before it is kept it is loaded back and checked on pictures of the store.
    """
    from pipelines import show
    from pipelines.export import export as run

    result = run(store, to, format, head, weights=weights)
    show.exported(result)
    _print_json(as_json, result)


@app.command()
def verify(store: Store, as_json: Json = False) -> None:
    """Read everything and say what is damaged.

    Every file is compared with the digest it had, every stored vector with its checksum.
    """
    from dataclasses import asdict

    from pipelines import maintenance, show

    with show.bar("verify, MB") as progress:
        found = maintenance.verify(store, progress)
    show.verified(found)
    _print_json(as_json, [asdict(finding) for finding in found])
    if found:
        raise StoreCorrupt(f"{store} is damaged: `penult doctor --store {store}` brings back what can be had.")


@app.command()
def doctor(store: Store, as_json: Json = False) -> None:
    """Repair a damaged store.

    What is damaged is put aside under STORE/damaged. Rows that any file still holds come back; lost features are
    embedded anew from the sources that the runs name, and nothing else is.
    """
    from pipelines import maintenance, show

    with show.bar("embed") as progress:
        result = maintenance.doctor(store, progress)
    show.repaired(result)
    _print_json(as_json, result.to_json())


@app.command()
def gc(
    store: Store,
    older_than: Annotated[
        float,
        typer.Option(parser=_seconds, metavar="TIME", help="Leave unfinished work that is younger: 30min, 12h, 1w."),
    ] = 7 * 86_400,
    as_json: Json = False,
) -> None:
    """Remove what no run needs any more.

    Old versions, what dead runs have left, what doctor has put aside; small files are merged. Embedding does most of
    it by itself.
    """
    from pipelines import maintenance, show

    freed = maintenance.gc(store, older_than)
    show.freed(freed)
    _print_json(as_json, freed)


@app.command()
def backbones(
    name: Annotated[str | None, typer.Argument(help="A backbone, to list its layers.")] = None, as_json: Json = False
) -> None:
    """List the backbones, or one's layers."""
    from pipelines import show
    from pipelines.backbones import table as known

    if name is None:
        rows = [row._asdict() for row in known.table()]
    else:
        rows = [{"layer": layer, "shape": list(shape)} for layer, shape in known.layers(name)]
    show.table(rows)
    _print_json(as_json, rows)


@app.command()
def heads(as_json: Json = False) -> None:
    """List the families of heads."""
    from heads.registry import FAMILIES
    from pipelines import show

    rows = [{"head": name, "about": f.about, "parameters": dict(f.defaults)} for name, f in FAMILIES.items()]
    show.table(rows)
    _print_json(as_json, rows)


@app.command()
def runs(store: Store, as_json: Json = False) -> None:
    """List the store's runs.

    The id of a train or compare run is the id of its head.
    """
    from featurestore.store import FeatureStore
    from pipelines import show

    rows = [show.run_row(record) for record in FeatureStore(store).runs()]
    show.table(rows)
    _print_json(as_json, rows)


def _crop(squash: bool, center: bool, pad: bool) -> str:
    chosen = [name for name, on in (("squash", squash), ("center", center), ("pad", pad)) if on]
    if len(chosen) > 1:
        raise UsageError("Give one of --squash, --center-crop and --pad.")
    return chosen[0] if chosen else "squash"


def _counts(option: str, text: str) -> list[int]:
    try:
        return [int(count) for count in text.split(",")]
    except ValueError:
        raise UsageError(f"Expected: {option} with whole numbers such as 1,5,10. Got: {text}.") from None


def _widths(text: str) -> list[int]:
    try:
        return [int(width) for width in text.split(",")]
    except ValueError:
        raise UsageError(f"Expected: --hidden with widths such as 1024,512. Got: {text}.") from None


def _parameters(given: list[str] | None, options: dict[str, Any]) -> dict[str, Any]:
    """The options that are not None, and NAME=VALUE, the value as JSON where it is that, else as text."""
    parameters = {name: value for name, value in options.items() if value is not None}
    for item in given or ():
        name, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"Expected: --param NAME=VALUE. Got: {item!r}.")
        if name in parameters:
            raise UsageError(f"{name} is given twice: leave --param {item} out.")
        try:
            parameters[name] = json.loads(value)
        except (ValueError, RecursionError):
            parameters[name] = value
    return parameters


def _print_json(wanted: bool, value: Any) -> None:
    if not wanted:
        return
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # an ASCII terminal, or a name that is no UTF-8
        text = json.dumps(value, allow_nan=False)
    print(text, flush=True)


def main() -> None:
    """Entry point: run a command, turn errors into one sentence and an exit code."""
    try:
        app()
    except PenultError as error:
        print(f"penult: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"penult: {trouble(error, 'The disk')}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
