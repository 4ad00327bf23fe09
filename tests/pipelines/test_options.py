"""Every option of every command: a value other than the default arrives where the command's work is done, and alone.

A command runs twice with recording stand-ins in place of its jobs, without an option and with it. What the two runs
were asked for may differ in nothing but what the table here says.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, astuple, fields, is_dataclass, replace
from datetime import date
from math import inf, nan
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
from typer.main import get_command

from conftest import CountingEngine, write_picture
from featurestore.errors import UsageError
from featurestore.maintenance.transfer import Copied
from featurestore.splits import Split
from featurestore.store import FeatureStore
from heads.comparison.space import Evaluation
from pipelines import commands
from pipelines import predict as predicting
from pipelines.backbones.engine_options import EngineOptions
from pipelines.backbones.table import Tap
from pipelines.commands import base, output
from pipelines.embedding import worker
from pipelines.embedding.embed import EmbedResult, embed
from pipelines.images.augmentation import Augmentation
from pipelines.options import (
    CompareOptions,
    EmbedOptions,
    FinetuneOptions,
    FitData,
    ReportOptions,
    TrainOptions,
    TrialOptions,
)
from pipelines.predict import Prediction
from pipelines.sources.listing import Hints

COMMAND = get_command(commands.app)
COPIED = Copied(files=3, bytes=2, copied_files=1, copied_bytes=1)
NIGHT = {"decision": "kept", "date": "2026-11-01"}
RUN = {"run_id": "run"}
TRACKING = {f"pipelines.tracking.{name}": None for name in ("require", "track_run", "track_aliases")}
# What each command calls that is replaced here, and what that answers.
JOBS: dict[str, dict[str, Any]] = {
    "demo": {
        "pipelines.demo.write_digits": None,
        "pipelines.embedding.embed.embed": EmbedResult("run", "set", "print"),
        "pipelines.training.compare_heads": {},
    },
    "embed": {
        "pipelines.embedding.embed.embed": EmbedResult("run", "set", "print"),
        "pipelines.embedding.embed.EmbedResult.check": None,
        "pipelines.sources.corpus.list_source": None,
    },
    "status": {
        "featurestore.store.FeatureStore": mock.DEFAULT,
        "featurestore.status.status": {},
        "featurestore.status.failed_files": [],
        "pipelines.commands.output.write_csv": None,
    },
    "forget": {"pipelines.embedding.forget.forget": {}},
    "label": {"pipelines.embedding.labels.import_labels": mock.DEFAULT},
    "train": {"pipelines.training.train_head": RUN, **TRACKING},
    "compare": {
        "heads.reporting.leaderboard.check": None,
        "pipelines.training.compare_heads": RUN,
        "pipelines.protocols.evaluate": RUN,
        "heads.reporting.leaderboard.write": None,
        **TRACKING,
    },
    "trial": {"pipelines.trial.trial.trial": {}},
    "finetune": {"pipelines.finetuning.finetune.finetune": {}},
    "promote": {
        "featurestore.store.FeatureStore": mock.DEFAULT,
        "pipelines.stored_heads.promote": mock.DEFAULT,
        **TRACKING,
    },
    "rollback": {
        "featurestore.store.FeatureStore": mock.DEFAULT,
        "pipelines.stored_heads.rollback": mock.DEFAULT,
        **TRACKING,
    },
    "champion": {"featurestore.store.FeatureStore": mock.DEFAULT, "pipelines.stored_heads.champion": mock.DEFAULT},
    "predict": {"pipelines.predict.predict": [Prediction("file:///a.png", "a", 1.0)]},
    "export": {"pipelines.export.export": {}},
    "verify": {"pipelines.maintenance.verify": []},
    "doctor": {"pipelines.maintenance.doctor": mock.DEFAULT},
    "gc": {"pipelines.maintenance.gc": {}},
    "copy": {"pipelines.maintenance.copy": COPIED},
    "backbones": {
        "featurestore.store.FeatureStore": mock.DEFAULT,
        "pipelines.backbones.foreign.names": {},
        "pipelines.backbones.table.table": [],
        "pipelines.backbones.networks.layers": [],
    },
    "backbones add": {"pipelines.backbones.addition.add": mock.DEFAULT},
    "backbones bench": {"pipelines.backbones.speed.measure": []},
    "backbones import": {"pipelines.backbones.importing.bring": mock.DEFAULT},
    "heads": {},
    "runs": {"featurestore.store.FeatureStore": mock.DEFAULT, "pipelines.retraining.night.nights": []},
    "retrain": {"pipelines.retraining.nightly.retrain": NIGHT, "pipelines.commands.output.log_as": None},
}
ARGUMENTS = {  # the least that a command takes, but for its store
    "backbones add": ["mine", "net.onnx", "--spec", "spec.toml"],
    "backbones bench": ["mine"],
    "backbones import": ["timm:resnet18", "--to", "out"],
    "copy": ["store", "other"],
    "embed": ["corpus"],
    "label": ["labels.csv"],
    "trial": ["corpus"],
    "forget": ["corpus"],
    "finetune": ["--unfreeze-from", "top_conv"],
    "predict": ["a.png"],
    "export": ["--to", "folder"],
    "retrain": ["nightly.toml"],
}
UNRECORDED = {"self", "value", "began", "run_id"}  # what only tells people, or is a night's alone
TELLING = {"progress", "say", "console"}  # likewise, and whether it is given counts


class Case(NamedTuple):
    """An option's value on the command line, where it arrives, as what; and what else has to be given."""

    given: str | None  # None for a flag
    arrives: dict[str, Any]
    beside: tuple[str, ...] = ()


def at(path: str, given: object, value: Any = None, beside: tuple[str, ...] = ()) -> Case:
    return Case(str(given), {path: given if value is None else value}, beside)


def flag(path: str, value: Any = True, beside: tuple[str, ...] = ()) -> Case:
    return Case(None, {path: value}, beside)


def tracked(job: str, experiment: str | None = None) -> dict[str, Any]:
    """What is asked of MLflow: a run or the aliases, in an experiment if another than that by default."""
    if experiment is not None:
        return {f"track_{job}.options.experiment": experiment}
    options = {"uri": "sqlite:///m.db", "experiment": "penult"}
    return {
        "require": True,
        f"track_{job}": True,
        f"track_{job}.store": "store",
        f"track_{job}.options": options,
        f"track_{job}.say": True,
    }


EMBED = "embed.options"
VIEW = "embed#2.options.augmentation"
TRAIN, COMPARE = "train_head.options", "compare_heads.options"
TUNE = "finetune.options"
TRIAL = "trial.options"
STORE = {
    "backbones": ["FeatureStore.path"],
    "backbones add": ["add.store"],
    "backbones bench": ["measure.store"],
    "embed": ["embed.store"],
    "status": ["FeatureStore.path"],
    "forget": ["forget.store"],
    "label": ["import_labels.store"],
    "train": ["train_head.store"],
    "compare": ["compare_heads.store"],
    "trial": ["trial.store"],
    "finetune": ["finetune.store"],
    "promote": ["FeatureStore.path"],
    "rollback": ["FeatureStore.path"],
    "champion": ["FeatureStore.path"],
    "predict": ["predict.store"],
    "export": ["export.store"],
    "verify": ["verify.store"],
    "doctor": ["doctor.store"],
    "gc": ["gc.store"],
    "runs": ["FeatureStore.path"],
    "retrain": ["retrain.store"],
}
DENSE = ("--head", "dense")
BUCKET = Case("region=eu", {"use": True, "use.options": ("region=eu",)})
FOLDER = Case("copies", {"keep_in": True, "keep_in.folder": "copies"})
LIMIT = Case("2GB", {"keep_in": True, "keep_in.limit": 2 * 10**9})
TABLE: dict[str, Case] = {
    **{f"{command} --json": flag("print_json.wanted") for command in JOBS},
    **{f"{command} --store": Case("other", dict.fromkeys(paths, "other")) for command, paths in STORE.items()},
    **{f"{command} --storage-option": BUCKET for command in (*STORE, "copy")},
    **{f"{command} --cache": FOLDER for command in (*STORE, "copy")},
    **{f"{command} --cache-limit": LIMIT for command in (*STORE, "copy")},
    "backbones add --spec": at("add.spec", "other.toml"),
    "backbones add --unproved": flag("add.unproved"),
    "backbones add --no-copy": flag("add.copy", False),
    "backbones bench --seconds": at("measure.seconds", 3.5),
    "backbones import --to": at("bring.to", "elsewhere"),
    "backbones import --random": flag("bring.random"),
    "backbones import --pooling": at("bring.pooling", "cls"),
    "embed --backbone": at(f"{EMBED}.backbone", "ResNet50"),
    "embed --weights": at(f"{EMBED}.weights", "w.h5"),
    "embed --layer": at(f"{EMBED}.layer", "conv"),
    "embed --pooling": at(f"{EMBED}.pooling", "max"),
    "embed --input-size": at(f"{EMBED}.input_size", 96),
    "embed --squash": Case(None, {}),  # the default
    "embed --center-crop": flag(f"{EMBED}.crop", "center"),
    "embed --pad": flag(f"{EMBED}.crop", "pad"),
    "embed --precision": at(f"{EMBED}.engine.precision", "bf16"),
    "embed --dtype": at(f"{EMBED}.dtype", "float32"),
    "embed --engine": at(f"{EMBED}.engine.engine", "tensorflow"),
    "embed --batch-size": at(f"{EMBED}.engine.batch_size", 3),
    "embed --shard-images": at(f"{EMBED}.shard_images", 17),
    "embed --label-set": at(f"{EMBED}.label_set", "second"),
    "embed --retry-failed": flag(f"{EMBED}.retry_failed"),
    "embed --accept-removed": flag(f"{EMBED}.accept_removed"),
    "embed --no-split-folders": flag(f"{EMBED}.split_folders", False),
    "embed --image-column": at(f"{EMBED}.image_column", "jpg"),
    "embed --label-column": at(f"{EMBED}.label_column", "kind"),
    "embed --runner": at(f"{EMBED}.runner", "FlinkRunner"),
    "embed --max-removed": Case("0.25", {f"{EMBED}.max_removed": 0.25, "check.max_removed": 0.25}),
    "embed --max-failure-rate": at("check.max_failure_rate", 0.25),
    "embed --views": at("embed#2.options.views", 3, beside=("--views", "2")),
    "embed --rotation": at(f"{VIEW}.rotation", 7.5, beside=("--views", "2")),
    "embed --shift": at(f"{VIEW}.shift", 0.25, beside=("--views", "2")),
    "embed --shear": at(f"{VIEW}.shear", 7.5, beside=("--views", "2")),
    "embed --zoom": at(f"{VIEW}.zoom", 0.25, beside=("--views", "2")),
    "embed --flip": at(f"{VIEW}.flip", "both", beside=("--views", "2")),
    "embed --fill": at(f"{VIEW}.fill", "black", beside=("--views", "2")),
    "embed --view-seed": at(f"{VIEW}.seed", 5, beside=("--views", "2")),
    "status --failed": Case(None, {"status": None, "failed_files": True, "shown": ["failed"]}),
    "status --csv": Case(
        "f.csv", {"write_csv": True, "write_csv.path": "f.csv", "write_csv.rows": (), "shown": []}, ("--failed",)
    ),
    "forget --unknown-origin": flag("forget.unknown_origin"),
    "label --label-set": at("import_labels.label_set", "second"),
    "label --withdraw": flag("import_labels.withdraw"),
    "train --head": at(f"{TRAIN}.head", "knn"),
    "train --C": at(f"{TRAIN}.params.C", 0.25),
    "train --hidden": at(f"{TRAIN}.params.hidden", "64,32", (64, 32)),
    "train --dropout": at(f"{TRAIN}.params.dropout", 0.25),
    "train --optimizer": at(f"{TRAIN}.params.optimizer", "sgd"),
    "train --learning-rate": at(f"{TRAIN}.params.learning_rate", 0.25),
    "train --epochs": at(f"{TRAIN}.params.epochs", 3),
    "train --batch-size": at(f"{TRAIN}.params.batch_size", 3),
    "train --patience": at(f"{TRAIN}.params.patience", 3),
    "train --param": at(f"{TRAIN}.params.k", "k=3", 3),
    "train --class-weight": at(f"{TRAIN}.class_weight", "balanced"),
    "train --seed": at(f"{TRAIN}.seed", 5),
    "train --gallery-seed": at(f"{TRAIN}.report.gallery_seed", 5),
    "train --tensorboard": at(f"{TRAIN}.report.tensorboard", "events"),
    "train --print-misclassified": flag(f"{TRAIN}.list_misclassified"),
    "compare --heads": at(f"{COMPARE}.search.grids", "ncm,knn", {"ncm": (), "knn": ()}),
    "compare --C": at(f"{COMPARE}.search.grids.logreg", "0.5", ({"C": 0.5},), ("--heads", "logreg")),
    "compare --hidden": at(f"{COMPARE}.search.grids.dense", "8,4", ({"hidden": (8, 4)},), ("--heads", "dense")),
    "compare --class-weight": at(f"{COMPARE}.search.class_weights", "none,balanced", (None, "balanced")),
    "compare --search": at(f"{COMPARE}.search.grids", "search.toml", {"knn": ({"k": 3},)}),
    "compare --cv": at(f"{COMPARE}.evaluation.folds", 4),
    "compare --seeds": at(f"{COMPARE}.evaluation.seeds", 3),
    "compare --fewshot-k": at(f"{COMPARE}.evaluation.fewshot", "1,5", (1, 5)),
    "compare --prefer": at(f"{COMPARE}.evaluation.prefer", "simple"),
    "compare --budget": at(f"{COMPARE}.evaluation.budget", "5m", 300.0),
    "compare --memory-limit": at(f"{COMPARE}.memory_limit", "2GiB", 2**31),
    "compare --gallery-seed": at(f"{COMPARE}.report.gallery_seed", 5),
    "compare --tensorboard": at(f"{COMPARE}.report.tensorboard", "events"),
    **{
        f"{command} {option}": at(f"{job}.data.{name}", *values)
        for command, job in (("train", TRAIN), ("compare", COMPARE))
        for option, name, *values in (
            ("--set", "feature_set", "res"),
            ("--label-set", "label_set", "second"),
            ("--val", "split.val", "20%", 0.2),
            ("--test", "split.test", "25%", 0.25),
            ("--split-seed", "split.seed", 5),
            ("--views", "views", 3),
            ("--views-set", "views_set", "those"),
        )
    },
    "compare --csv": Case(
        "b.csv",
        {"check": True, "check.path": "b.csv", "write": True, "write.path": "b.csv", "write.result": {"run_id": "run"}},
    ),
    **{
        f"{command} {option}": Case(given, tracked(job, *values), beside)
        for command, job in (("train", "run"), ("compare", "run"), ("promote", "aliases"), ("rollback", "aliases"))
        for option, given, values, beside in (
            ("--track", "sqlite:///m.db", (), ()),
            ("--experiment", "mine", ("mine",), ("--track", "sqlite:///m.db")),
        )
    },
    "trial --backbone": at(f"{TRIAL}.backbones", "ResNet50", ("ResNet50",)),
    "trial --max-share": at(f"{TRIAL}.max_share", "8%", 0.08),
    "trial --margin": at(f"{TRIAL}.margin", 0.25),
    "trial --budget": at(f"{TRIAL}.budget", "5m", 300.0),
    "trial --seed": at(f"{TRIAL}.seed", 5),
    "trial --max-failure-rate": at(f"{TRIAL}.max_failure_rate", 0.25),
    "trial --val": at(f"{TRIAL}.split.val", "20%", 0.2),
    "trial --test": at(f"{TRIAL}.split.test", "25%", 0.25),
    "trial --split-seed": at(f"{TRIAL}.split.seed", 5),
    "trial --precision": at(f"{TRIAL}.embed.engine.precision", "bf16"),
    "trial --dtype": at(f"{TRIAL}.embed.dtype", "float32"),
    "trial --engine": at(f"{TRIAL}.embed.engine.engine", "tensorflow"),
    "trial --batch-size": at(f"{TRIAL}.embed.engine.batch_size", 3),
    "trial --label-set": at(f"{TRIAL}.embed.label_set", "second"),
    "trial --accept-removed": flag(f"{TRIAL}.embed.accept_removed"),
    "trial --max-removed": at(f"{TRIAL}.embed.max_removed", 0.25),
    "trial --no-split-folders": flag(f"{TRIAL}.embed.split_folders", False),
    "trial --image-column": at(f"{TRIAL}.embed.image_column", "jpg"),
    "trial --label-column": at(f"{TRIAL}.embed.label_column", "kind"),
    "finetune --unfreeze-from": at(f"{TUNE}.unfreeze_from", "block6a"),
    "finetune --head": at("finetune.head_id", "abc"),
    "finetune --optimizer": at(f"{TUNE}.optimizer", "adam"),
    "finetune --learning-rate": at(f"{TUNE}.learning_rate", 0.25),
    "finetune --schedule": at(f"{TUNE}.schedule", "cosine"),
    "finetune --momentum": at(f"{TUNE}.momentum", 0.25),
    "finetune --rotation": at(f"{TUNE}.augmentation.rotation", 7.5),
    "finetune --shift": at(f"{TUNE}.augmentation.shift", 0.25),
    "finetune --shear": at(f"{TUNE}.augmentation.shear", 7.5),
    "finetune --zoom": at(f"{TUNE}.augmentation.zoom", 0.25),
    "finetune --flip": at(f"{TUNE}.augmentation.flip", "vertical"),
    "finetune --fill": at(f"{TUNE}.augmentation.fill", "reflect"),
    "finetune --epochs": at(f"{TUNE}.epochs", 3),
    "finetune --batch-size": at(f"{TUNE}.batch_size", 3),
    "finetune --seed": at(f"{TUNE}.augmentation.seed", 5),
    "finetune --weights": at("finetune.weights", "w.h5"),
    "promote --alias": at("promote.alias", "challenger"),
    "promote --reason": at("promote.why.reason", "better"),
    "rollback --alias": at("rollback.alias", "challenger"),
    "rollback --reason": at("rollback.reason", "worse"),
    "champion --alias": at("champion.alias", "challenger"),
    "predict --head": at("predict.head_id", "abc"),
    "predict --top": at("predict.options.top", 3),
    "predict --weights": at("predict.options.weights", "w.h5"),
    "predict --engine": at("predict.options.engine.engine", "tensorflow"),
    "export --to": at("export.to", "other"),
    "export --head": at("export.head_id", "abc"),
    "export --format": at("export.options.format", "onnx"),
    "export --weights": at("export.options.weights", "w.h5"),
    "gc --older-than": at("gc.older_than", "2h", 7200.0),
    "retrain --date": at("retrain.options.date", "2026-11-01", date(2026, 11, 1)),
    "retrain --plan": flag("retrain.options.plan"),
    "retrain --wait": at("retrain.options.wait", "2min", 120.0),
    "retrain --timeout": at("retrain.options.timeout", "2h", 7200.0),
    "retrain --skip-code": Case("99", {}),  # only an unchanged night has it: see test_retrain.py
    "retrain --log-format": at("log_as.form", "json"),
    "retrain --init": Case(  # no night is begun; what is written see test_retrain.py
        "new.toml",
        dict.fromkeys(("retrain", *(f"retrain.{name}" for name in ("recipe", "store", "console"))))
        | dict.fromkeys((*(f"retrain.options.{name}" for name in ("plan", "wait")), "print_json", "print_json.wanted"))
        | {"shown": ["say"]},
    ),
}
POSITIONAL = {
    "demo folder": Case(
        "other",
        {
            "write_digits.folder": "other/digits",
            "embed.source": "other/digits",
            "embed.store": "other/store",
            "compare_heads.store": "other/store",
        },
    ),
    "embed source": Case("other", {"embed.source": "other", "list_source.source": "other"}),
    "forget source": at("forget.source", "other"),
    "label file": at("import_labels.file", "other.csv"),
    "trial source": at("trial.source", "other"),
    "promote head": at("promote.name", "abc"),
    "retrain recipe": at("retrain.recipe", "other.toml"),
    "copy store": at("copy.store", "elsewhere"),
    "copy to": at("copy.to", "elsewhere"),
    "predict images": at("predict.pictures", "b.png", ("b.png",)),
    "backbones add name": at("add.name", "other"),
    "backbones add model": at("add.model", "other.xml"),
    "backbones bench name": at("measure.name", "other"),
    "backbones import source": at("bring.source", "hf:other"),
    "backbones name": Case(
        "ResNet50", {"table": None, "table.added": None, "layers": True, "layers.backbone": "ResNet50"}
    ),
}


def plain(value: Any) -> Any:
    """A value as what can be compared: dataclasses and lists by what they hold, paths as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | range):
        return tuple(map(plain, value))
    return str(value) if isinstance(value, Path) else value


def flat(path: str, value: Any) -> dict[str, Any]:
    """{"a.b": 1} of {"b": 1} at "a"."""
    if not isinstance(value, dict):
        return {path: value}
    return {at: one for key, inner in value.items() for at, one in flat(f"{path}.{key}", inner).items()}


def own_defaults(default: Any, value: Any) -> Any:
    """What a job does that is not told: the default of an argument, or those of the dataclass that it takes."""
    if default is inspect.Parameter.empty and is_dataclass(value):
        made = {one.name: one.default_factory() for one in fields(value) if one.default_factory is not MISSING}
        return made | {one.name: one.default for one in fields(value) if one.default is not MISSING}
    return {} if default is inspect.Parameter.empty else default


def asked_for(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    command: str,
    arguments: list[str],
    defaults: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What a command asks of its jobs, as one flat mapping; what those would do by themselves is in ``defaults``."""
    told: dict[str, Any] = {}

    def recording(path: str, answer: Any) -> tuple[Any, str, Callable[..., Any]]:
        module, _, name = path.rpartition(".")
        owner: Any = EmbedResult if module.endswith(".EmbedResult") else importlib.import_module(module)
        signature, calls = inspect.signature(getattr(owner, name)), iter(range(1, 9))

        def record(*args: Any, **options: Any) -> Any:
            bound = signature.bind(*args, **options)
            bound.apply_defaults()
            call = next(calls)
            at = name if call == 1 else f"{name}#{call}"
            told[at] = True
            for argument, value in bound.arguments.items():
                if argument in TELLING:
                    told[f"{at}.{argument}"] = value is not None
                elif argument not in UNRECORDED and not isinstance(value, mock.Mock):
                    told.update(flat(f"{at}.{argument}", plain(value)))
                    if defaults is not None:
                        own = own_defaults(signature.parameters[argument].default, value)
                        defaults.update(flat(f"{at}.{argument}", plain(own)))
            return mock.MagicMock() if answer is mock.DEFAULT else answer

        return owner, name, record

    patches = [recording(path, answer) for path, answer in JOBS[command].items()]
    patches.append(recording(f"{COMMAND.commands[command].callback.__module__}.print_json", None))
    patches.append(recording("featurestore.storage.settings.use", None))
    patches.append(recording("featurestore.storage.cache.keep_in", None))
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        shown = mock.MagicMock()
        for name in [name for name, one in vars(output).items() if inspect.isfunction(one)]:
            patch.setattr(output, name, getattr(shown, name))
        for owner, name, record in patches:
            patch.setattr(owner, name, record)
        patch.setattr("sys.argv", ["penult", command, *arguments])
        patch.setattr(base, "app", COMMAND)
        try:
            commands.main()
        except SystemExit as ended:
            assert not ended.code, arguments
    for name, said in (("use", ("use.options",)), ("keep_in", ("keep_in.folder", "keep_in.limit"))):
        if not any(map(told.get, said)):
            told = {path: value for path, value in told.items() if path.partition(".")[0] != name}
    assert told, "none of the command's jobs was called"
    told["shown"] = [name for name, *_ in shown.method_calls if "." not in name]
    told["said"] = [call.args[0] for call in shown.say.call_args_list]
    return told


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    (folder / "search.toml").write_text("[heads.knn]\nk = [3]\n")
    return folder


def options() -> list[tuple[str, str]]:
    """All options, as the command line itself lists them: command and name."""
    return [
        (command, parameter.opts[0])
        for command, about in COMMAND.commands.items()
        for parameter in about.params
        if parameter.param_type_name == "option" and "--help" not in parameter.opts
    ]


def positional() -> list[tuple[str, str]]:
    """All arguments, likewise."""
    return [
        (command, str(parameter.name))
        for command, about in COMMAND.commands.items()
        for parameter in about.params
        if parameter.param_type_name == "argument"
    ]


def test_the_table_has_every_option_and_no_other() -> None:
    assert {" ".join(option) for option in options()} == TABLE.keys(), "say here where it arrives"
    assert {" ".join(argument) for argument in positional()} == POSITIONAL.keys()
    assert COMMAND.commands.keys() == JOBS.keys()


@pytest.mark.parametrize(("command", "name"), options(), ids=lambda part: part)
def test_an_option_arrives_and_changes_nothing_else(
    place: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str
) -> None:
    case = TABLE[f"{command} {name}"]
    takes_store = f"{command} --store" in TABLE
    store = ["--store", "store"] if takes_store else []
    least = ARGUMENTS.get(command, [])
    if name == "--unknown-origin":
        least = []  # it stands for a source
    if name in least:  # it has to be given: another value then
        without, given = [*least, *store], [name, str(case.given)]
    else:
        without = [*least, *store, *case.beside]
        given = [name] if case.given is None else [f"{name}={case.given}"]
    check(place, monkeypatch, command, without, [*without, *given], case)


@pytest.mark.parametrize("command", JOBS)
def test_without_options_a_command_does_what_its_job_does(
    place: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """A default is the same on the command line, where the README shows it, and for who calls the job from Python."""
    store = ["--store", "store"] if f"{command} --store" in TABLE else []
    defaults: dict[str, Any] = {}
    told = asked_for(monkeypatch, place, command, [*ARGUMENTS.get(command, []), *store], defaults)
    assert {path: defaults.get(path, value) for path, value in told.items()} == told


@pytest.mark.parametrize(("command", "name"), positional(), ids=lambda part: part)
def test_an_argument_arrives_and_changes_nothing_else(
    place: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str
) -> None:
    case = POSITIONAL[f"{command} {name}"]
    store = ["--store", "store"] if f"{command} --store" in TABLE else []
    least = ARGUMENTS.get(command, [])
    at = [argument for other, argument in positional() if other == command].index(name)
    given = [*least[:at], str(case.given), *least[at + 1 :]]
    check(place, monkeypatch, command, [*least, *store], [*given, *store], case)


def check(
    place: Path, monkeypatch: pytest.MonkeyPatch, command: str, without: list[str], given: list[str], case: Case
) -> None:
    before = asked_for(monkeypatch, place, command, without)
    after = asked_for(monkeypatch, place, command, given)
    paths = (before.keys() | after.keys()) - {"said"}
    changed = {path: after.get(path) for path in paths if before.get(path) != after.get(path)}
    assert changed == {path: one for top, value in case.arrives.items() for path, one in flat(top, value).items()}


def test_words_after_two_dashes_are_the_runners(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    least = ["corpus", "--store", "store"]
    case = Case(None, {f"{EMBED}.runner_arguments": ("--x=1", "y")})
    check(place, monkeypatch, "embed", least, [*least, "--", "--x=1", "y"], case)


def test_each_of_several_sources_is_embedded_and_told(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Views after the images of each; in JSON all of them."""
    numbers = iter(range(9))
    told: list[str] = []
    monkeypatch.setattr("pipelines.sources.corpus.list_source", lambda *_: None)
    monkeypatch.setattr(
        "pipelines.embedding.embed.embed",
        lambda source, _store, options, _progress: EmbedResult(f"{source}-{options.views}", "set", str(next(numbers))),
    )
    monkeypatch.setattr(output, "embedded", lambda result: told.append(result.run_id))
    run(monkeypatch, "embed", "a", "b", "--store", place / "store", "--views", 2, "--json")
    assert told == ["a-0", "a-2", "b-0", "b-2"]
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])["sources"]
    assert [(one["run_id"], one["views"]["run_id"]) for one in printed] == [("a-0", "a-2"), ("b-0", "b-2")]


# --- what is asked for where nothing is given

ENGINE = {"engine": "openvino", "precision": "f32", "batch_size": None}
EMBEDS = {
    "backbone": "efficientnet-lite0",
    "weights": "imagenet",
    "layer": None,
    "pooling": "avg",
    "input_size": None,
    "crop": "squash",
    "engine": ENGINE,
    "dtype": "float16",
    "shard_images": None,
    "label_set": "default",
    "retry_failed": False,
    "split_folders": True,
    "image_column": None,
    "label_column": None,
    "max_removed": 0.5,
    "accept_removed": False,
    "views": 0,
    "augmentation": None,
    "runner": "FnApiRunner",
    "runner_arguments": (),
}
DRAWS = {"rotation": 15.0, "shift": 0.1, "shear": 0.0, "zoom": 0.1, "flip": "horizontal", "fill": "nearest", "seed": 0}
STILL = {"rotation": 0.0, "shift": 0.0, "shear": 0.0, "zoom": 0.0, "flip": "none", "fill": "nearest", "seed": 0}
SPLITS = {"feature_set": None, "label_set": "default", "split": {"val": 0.15, "test": 0.15, "seed": 0}}
FITS = {
    "data": SPLITS | {"views": 0, "views_set": None},
    "report": {"gallery_seed": 0, "tensorboard": None},
}
COMPARES = {
    **{"search": {"class_weights": ()}, "sets": (), "memory_limit": None, **FITS},
    "evaluation": {"seeds": 1, "first_seed": 0, "folds": 0, "fewshot": (), "prefer": "best", "budget": None},
}


def embeds(source: str, store: str, **options: Any) -> dict[str, Any]:
    return {"source": source, "store": store, "options": EMBEDS | options, "progress": True, "as_source": True}


def compares(store: str, **options: Any) -> dict[str, Any]:
    return {"store": store, "options": COMPARES | options, "progress": True}


def evaluates(store: str, protocol: str, **options: Any) -> dict[str, Any]:
    return {"store": store, "protocol": protocol, "data": FITS["data"], "sets": ()} | options


def said(job: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a job is told, but for what is none by default."""
    return {path: value for path, value in flat(job, arguments).items() if value is not None}


TABLE["compare --protocol"] = Case(  # another job, and no other
    "dinov2-knn",
    dict.fromkeys(("compare_heads", *said("compare_heads", compares("store"))))
    | {"evaluate": True, **said("evaluate", evaluates("store", "dinov2-knn")), "shown": ["evaluated"]},
)
LISTED = {"source": "corpus", "hints": asdict(Hints())}
SHARES = {"max_failure_rate": 0.05, "max_removed": 0.5}
# By command, the jobs in their order, what each is asked for, and the functions of ``output`` that tell of it.
DEFAULTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "demo": (
        {
            "write_digits": {"folder": "penult-demo/digits"},
            "embed": embeds("penult-demo/digits", "penult-demo/store"),
            "compare_heads": compares("penult-demo/store"),
        },
        ["say", "bar", "embedded", "bar", "compared", "say"],
    ),
    "embed": ({"list_source": LISTED, "embed": embeds("corpus", "store"), "check": SHARES}, ["bar", "embedded"]),
    "embed --views 2": (
        {
            "list_source": LISTED,
            "embed": embeds("corpus", "store"),
            "embed#2": embeds("corpus", "store", views=2, augmentation=DRAWS),
            "check": SHARES,
        },
        ["bar", "embedded", "bar", "embedded"],
    ),
    "status": ({"FeatureStore": {"path": "store"}, "status": {}}, ["status"]),
    "status --failed": ({"FeatureStore": {"path": "store"}, "failed_files": {}}, ["failed"]),
    "status --failed --csv x": (
        {"FeatureStore": {"path": "store"}, "failed_files": {}, "write_csv": {"path": "x", "rows": ()}},
        [],
    ),
    "forget": ({"forget": {"store": "store", "source": "corpus", "unknown_origin": False}}, ["forgotten"]),
    "label": (
        {"import_labels": {"file": "labels.csv", "store": "store", "label_set": "default", "withdraw": False}},
        ["labelled"],
    ),
    "train": (
        {
            "train_head": {
                "store": "store",
                "options": {"head": "logreg", "class_weight": None, "seed": 0, "list_misclassified": False, **FITS},
            }
        },
        ["trained"],
    ),
    "compare": ({"compare_heads": compares("store")}, ["bar", "compared"]),
    "compare --set a --set b": ({"compare_heads": compares("store", sets=("a", "b"))}, ["bar", "compared"]),
    "compare --protocol a": ({"evaluate": evaluates("store", "a")}, ["evaluated"]),
    "compare --protocol a --set b": (
        {"evaluate": evaluates("store", "a", data=FITS["data"] | {"feature_set": "b"})},
        ["evaluated"],
    ),
    "compare --protocol a --set b --set c": ({"evaluate": evaluates("store", "a", sets=("b", "c"))}, ["evaluated"]),
    "finetune": (
        {
            "finetune": {
                **{"store": "store", "head_id": None, "weights": None, "progress": True, "say": True},
                "options": {
                    **{"unfreeze_from": "top_conv", "optimizer": "sgd", "learning_rate": 0.0001, "momentum": None},
                    **{"schedule": "constant", "epochs": 20, "batch_size": 32, "augmentation": STILL},
                },
            }
        },
        ["bar", "finetuned"],
    ),
    "trial": (
        {
            "trial": {
                **{"source": "corpus", "store": "store", "progress": True, "say": True},
                "options": {
                    **{"backbones": (), "max_share": 0.05, "margin": 0.5, "budget": None},
                    **{"seed": 0, "max_failure_rate": 0.05, "split": SPLITS["split"], "embed": EMBEDS},
                },
            }
        },
        ["bar", "tried"],
    ),
    "promote": (
        {"FeatureStore": {"path": "store"}, "promote": {"name": None, "alias": "champion", "why": {"reason": ""}}},
        ["promoted"],
    ),
    "rollback": ({"FeatureStore": {"path": "store"}, "rollback": {"alias": "champion", "reason": ""}}, ["promoted"]),
    "champion": ({"FeatureStore": {"path": "store"}, "champion": {"alias": "champion"}}, ["pointed"]),
    "predict": (
        {
            "predict": {
                **{"pictures": ("a.png",), "store": "store", "head_id": None, "say": True},
                "options": {"top": 5, "weights": None, "engine": ENGINE},
            }
        },
        ["predicted"],
    ),
    "export": (
        {
            "export": {
                **{"store": "store", "to": "folder", "head_id": None, "say": True},
                "options": {"format": "keras", "weights": None},
            }
        },
        ["exported"],
    ),
    "verify": ({"verify": {"store": "store", "progress": True}}, ["bar", "verified"]),
    "doctor": ({"doctor": {"store": "store", "progress": True}}, ["bar", "repaired"]),
    "gc": ({"gc": {"store": "store", "older_than": 604_800.0}}, ["freed"]),
    "copy": ({"copy": {"store": "store", "to": "other", "progress": True}}, ["bar", "say"]),
    "backbones": ({"FeatureStore": {"path": "store"}, "names": {}, "table": {"added": ()}}, ["table"]),
    "backbones add": (
        {
            "add": {
                "store": "store",
                "name": "mine",
                "model": "net.onnx",
                "spec": "spec.toml",
                "unproved": False,
                "copy": True,
            }
        },
        ["added_backbone"],
    ),
    "backbones bench": ({"measure": {"name": "mine", "store": "store", "seconds": 2.0}}, ["table"]),
    "backbones import": (
        {"bring": {"source": "timm:resnet18", "to": "out", "random": False, "pooling": None}},
        ["imported_backbone"],
    ),
    "heads": ({}, ["table"]),
    "runs": ({"FeatureStore": {"path": "store"}, "nights": {}}, ["table"]),
    "retrain": (
        {
            "log_as": {"form": "text"},
            "retrain": {
                "recipe": "nightly.toml",
                "store": "store",
                "options": {"date": None, "plan": False, "wait": 0.0, "timeout": None},
                "console": True,
            },
        },
        ["night"],
    ),
}


def command_of(words: str) -> str:
    """The command of one or two words that options may follow."""
    two = " ".join(words.split()[:2])
    return two if two in JOBS else words.split()[0]


@pytest.mark.parametrize("words", DEFAULTS)
def test_without_options_a_command_asks_for_its_defaults(
    place: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    command = command_of(words)
    options = words.removeprefix(command).split()
    store = ["--store", "store"] if f"{command} --store" in TABLE else []
    told = asked_for(monkeypatch, place, command, [*ARGUMENTS.get(command, []), *store, *options])
    del told["said"]
    jobs, shown = DEFAULTS[words]
    expected: dict[str, Any] = {"shown": shown, "print_json": True, "print_json.wanted": False}
    for job, arguments in jobs.items():
        expected |= {job: True, **flat(job, arguments)}
    assert told == expected
    order = [job for job in told if told[job] is True and "." not in job]
    if "check" in jobs:  # exit code 3 comes after all is said
        assert order == [*(job for job in jobs if job != "check"), "print_json", "check"]
    else:
        assert order == [*jobs, "print_json"]


def test_every_command_has_defaults() -> None:
    assert {command_of(words) for words in DEFAULTS} == JOBS.keys()


def test_the_demo_says_what_to_try(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = asked_for(monkeypatch, place, "demo", ["folder"])["said"]
    assert said == [
        "Writing scikit-learn's handwritten digits to folder/digits.",
        "\nThe store is folder/store. Try:\n  penult status --store folder/store\n"
        "  penult predict folder/digits/7/0007.png --store folder/store",
    ]


def test_every_command_option_and_argument_says_what_it_is_for() -> None:
    for command, about in COMMAND.commands.items():
        assert about.help, command
        for parameter in about.params:
            assert parameter.help, f"{command} {parameter.name}"
    metavars = {
        f"{command} {parameter.opts[0]}": parameter.metavar
        for command, about in COMMAND.commands.items()
        for parameter in about.params
        if parameter.metavar
    }
    shares = {f"{command} --{part}": "SHARE" for command in ("train", "compare", "trial") for part in ("val", "test")}
    stores = {f"{command} --store": "PLACE" for command in STORE}
    of_buckets = {"--storage-option": "KEY=VALUE", "--cache": "DIR", "--cache-limit": "SIZE"}
    buckets = {f"{command} {name}": word for command in (*STORE, "copy") for name, word in of_buckets.items()}
    tracked = {"--track": "URI", "--experiment": "NAME"}
    tracking = {
        f"{command} {name}": word
        for command in ("train", "compare", "promote", "rollback")
        for name, word in tracked.items()
    }
    assert metavars == shares | stores | buckets | tracking | {
        "embed source": "SOURCE... [-- RUNNER OPTIONS]",
        "status --csv": "FILE",
        "compare --prefer": "WHICH",
        "compare --csv": "FILE",
        "compare --protocol": "NAME",
        "compare --budget": "TIME",
        "compare --memory-limit": "SIZE",
        "trial --max-share": "SHARE",
        "trial --budget": "TIME",
        "gc --older-than": "TIME",
        "copy store": "STORE",
        "copy to": "PLACE",
        "retrain recipe": "RECIPE.toml",
        "retrain --date": "DATE",
        "retrain --wait": "TIME",
        "retrain --timeout": "TIME",
        "retrain --init": "FILE",
    }


# How Python callers call the jobs: names, order, and what is given by its name alone.
CALLS: dict[str, str] = {
    "pipelines.backbones.addition.add": "store name model spec unproved= copy=",
    "pipelines.backbones.importing.bring": "source to random= pooling=",
    "pipelines.backbones.speed.measure": "name store seconds=",
    "pipelines.embedding.embed.embed": "source store options= progress= * as_source= began=",
    "pipelines.embedding.forget.forget": "store source * unknown_origin=",
    "pipelines.embedding.labels.import_labels": "file store label_set= * withdraw=",
    "pipelines.training.train_head": "store options=",
    "pipelines.training.compare_heads": "store options= progress= * run_id=",
    "pipelines.protocols.evaluate": "store protocol data= sets=",
    "pipelines.retraining.nightly.retrain": "recipe store options= console=",
    "pipelines.trial.trial.trial": "source store options progress= say=",
    "pipelines.finetuning.finetune.finetune": "store head_id options weights= progress= say=",
    "pipelines.predict.predict": "pictures store head_id= options= say=",
    "pipelines.export.export": "store to options= head_id= say=",
    "pipelines.stored_heads.promote": "store name alias= why",
    "pipelines.stored_heads.rollback": "store alias= reason=",
    "pipelines.stored_heads.champion": "store alias=",
    "pipelines.maintenance.verify": "store progress=",
    "pipelines.maintenance.doctor": "store progress=",
    "pipelines.maintenance.gc": "store older_than",
    "pipelines.maintenance.copy": "store to progress=",
}


def test_jobs_are_called_as_they_were() -> None:
    def call(path: str) -> str:
        module, _, name = path.rpartition(".")
        words = []
        for parameter in inspect.signature(getattr(importlib.import_module(module), name)).parameters.values():
            words += ["*"] if parameter.kind is parameter.KEYWORD_ONLY and "*" not in words else []
            words.append(parameter.name + "=" * (parameter.default is not parameter.empty))
            words += ["/"] if parameter.kind is parameter.POSITIONAL_ONLY else []
        return " ".join(words)

    assert {path: call(path) for path in CALLS} == CALLS


# --- what comes of it


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["penult", *map(str, arguments)])
    monkeypatch.setattr(base, "app", COMMAND)
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert not ended.value.code


def parameters(store: Path) -> dict[str, Any]:
    """What the newest run's record says that it was asked for."""
    return FeatureStore(store).runs()[-1].parameters


def test_an_embedding_is_as_it_was_asked_for_and_says_so(
    corpus: Path, tmp_path: Path, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    given = "--pooling max --input-size 96 --pad --dtype float32 --engine tensorflow --batch-size 3 --shard-images 17"
    given += " --label-set second --retry-failed --max-removed 0.25 --accept-removed --no-split-folders"
    given += " --image-column jpg --label-column kind"
    asked = EmbedOptions(
        pooling="max",
        input_size=96,
        crop="pad",
        dtype="float32",
        engine=EngineOptions("tensorflow", batch_size=3),
        shard_images=17,
        label_set="second",
        retry_failed=True,
        max_removed=0.25,
        accept_removed=True,
        split_folders=False,
        image_column="jpg",
        label_column="kind",
    )
    run(monkeypatch, "embed", corpus, "--store", store, *given.split())
    flattened = asdict(asked) | {"engine": "tensorflow", "precision": "f32", "batch_size": 3}
    assert parameters(store) == json.loads(json.dumps({"source": str(corpus), **flattened}))
    opened = FeatureStore(store)
    spec = opened.spec(opened.resolve())
    assert (spec.pooling, spec.dtype, spec.preprocessing.input_size) == ("max", "float32", 96)
    assert len(opened.dataset(label_set="second")) == 30 and not len(opened.label_rows("default"))
    run(monkeypatch, "embed", corpus, "--store", store, *given.split(), "--views", "2", "--shear", "9")
    views = {"views": 2, "augmentation": asdict(Augmentation(15.0, 0.1, 9.0, 0.1, "horizontal", "nearest", 0))}
    assert parameters(store) == json.loads(json.dumps({"source": str(corpus), **flattened, **views}))


def test_fits_are_as_they_were_asked_for_and_say_so(
    corpus: Path, tmp_path: Path, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    name = embed(str(corpus), store, EmbedOptions(label_set="second")).feature_set
    common = ["--store", store, "--set", name, "--label-set", "second"]
    common += ["--val", "20%", "--test", "25%", "--split-seed", "5"]
    data = FitData(name, "second", Split(0.2, 0.25, 5)).to_json()
    run(monkeypatch, "train", *common, "--head", "knn", "--param", "k=3", "--seed", "7")
    fitted = {"head": "knn", "params": {"k": 3}, "class_weight": None, "seed": 7}
    assert parameters(store) == fitted | data
    split = FeatureStore(store).dataset(name, "second", split=Split(0.2, 0.25, 5)).splits
    told = FeatureStore(store).runs()[-1].result["n"]
    assert {part: told[part] for part in ("train", "val", "test")} == {
        part: int(np.sum(split == part)) for part in ("train", "val", "test")
    }
    run(monkeypatch, "compare", *common, "--heads", "ncm", "--cv", "2", "--seeds", "3", "--budget", "5m")
    compared = {"search": {"grids": {"ncm": []}, "class_weights": []}, "sets": [], "memory_limit": None}
    compared |= {"seeds": [0, 1, 2], "folds": 2, "fewshot": [], "prefer": "best", "budget": 300.0}
    assert parameters(store) == compared | data


def test_engines_are_opened_as_they_were_asked_for(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[tuple[Any, ...]] = []

    def open_engine(tap: Tap, asked: EngineOptions, threads: int = 0, _graph: object = None) -> CountingEngine:
        assert not threads  # all that there are
        opened.append((*astuple(asked), tap.layer, tap.pooling, tap.input_size, tap.crop))
        return CountingEngine(8)

    monkeypatch.setattr(worker, "open_engine", open_engine)
    monkeypatch.setattr(predicting, "open_engine", open_engine)
    worker.engine_for.cache_clear()
    store = tmp_path / "store"
    given = "--engine tensorflow --batch-size 3 --layer block6a --pooling max --input-size 64 --center-crop"
    run(monkeypatch, "embed", corpus, "--store", store, *given.split())
    assert opened == [("tensorflow", "f32", 3, "block6a", "max", 64, "center")]
    run(monkeypatch, "train", "--store", store, "--head", "ncm")
    new = write_picture(tmp_path / "new.png", 99)
    capsys.readouterr()
    run(monkeypatch, "predict", new, "--store", store, "--engine", "tensorflow", "--top", "2", "--json")
    assert opened[1:] == [("tensorflow", "f32", None, "block6a", "max", 64, "center")]
    assert len(json.loads(capsys.readouterr().out)[0]["top"]) == 2
    worker.engine_for.cache_clear()


def embeds_views(views: int) -> EmbedOptions:
    return EmbedOptions(views=views, augmentation=Augmentation())


# How options are made with a number, the first and last numbers that are taken, and the next ones that are not.
NUMBERS: list[tuple[Callable[[Any], Any], tuple[float, ...], tuple[float, ...]]] = [
    (lambda n: EmbedOptions(max_removed=n), (0, 1), (-0.001, 1.001, nan)),
    (lambda n: EmbedOptions(shard_images=n), (1, 1_048_576), (0, 1_048_577)),
    (embeds_views, (1, 100), (-1, 0, 101)),
    (lambda n: Augmentation(rotation=n), (0, 180), (-0.1, 180.1, nan)),
    (lambda n: Augmentation(shift=n), (0, 1), (-0.001, 1.001, nan)),
    (lambda n: Augmentation(shear=n), (0, 80), (-0.1, 80.1, nan)),
    (lambda n: Augmentation(zoom=n), (0, 0.9), (-0.001, 0.901, nan)),
    (lambda n: Augmentation(seed=n), (0, 2**63 - 1), (-1, 2**63)),
    (lambda n: FitData(views=n), (0, 100), (-1, 101)),
    (lambda n: FitData(split=Split(seed=n)), (0, 2**63 - 1), (-1, 2**63)),
    (lambda n: ReportOptions(gallery_seed=n), (0, 2**63 - 1), (-1, 2**63)),
    (lambda n: TrainOptions(seed=n), (0, 2**63 - 1), (-1, 2**63)),
    (lambda n: CompareOptions(evaluation=Evaluation(folds=n)), (0, 2, 100), (-1, 1, 101)),
    (lambda n: CompareOptions(evaluation=Evaluation(seeds=n)), (1, 100), (0, 101)),
    (lambda n: CompareOptions(evaluation=Evaluation(fewshot=(n,))), (1, 1_000_000), (0, 1_000_001)),
    (lambda n: CompareOptions(evaluation=Evaluation(budget=n)), (0, 1e12), (-0.001, inf, nan)),
    (lambda n: CompareOptions(memory_limit=n), (1, 2**60), (0, inf)),
    (lambda n: TrialOptions(("a", "b"), max_share=n), (0.001, 1), (0, -0.1, 1.001, nan)),
    (lambda n: TrialOptions(("a", "b"), margin=n), (0, 100), (-0.001, inf, nan)),
    (lambda n: TrialOptions(("a", "b"), budget=n), (0, 1e12), (-0.001, inf, nan)),
    (lambda n: TrialOptions(("a", "b"), seed=n), (0, 2**63 - 1), (-1, 2**63)),
    (lambda n: TrialOptions(("a", "b"), max_failure_rate=n), (0, 1), (-0.001, 1.001, nan)),
    (lambda n: FinetuneOptions("top", epochs=n), (1, 100_000), (0, 100_001)),
    (lambda n: FinetuneOptions("top", batch_size=n), (1, 32_768), (0, 32_769)),
    (lambda n: FinetuneOptions("top", learning_rate=n), (5e-324, 1e300), (0, -1e-9, inf, nan)),
    (lambda n: FinetuneOptions("top", momentum=n), (0, 0.999), (-0.001, 1, nan)),
]


@pytest.mark.parametrize("row", range(len(NUMBERS)))
def test_numbers_are_taken_from_the_first_to_the_last(row: int) -> None:
    made, taken, refused = NUMBERS[row]
    for number in taken:
        made(number).check()
    for number in refused:
        with pytest.raises(UsageError):
            made(number).check()


def test_options_of_fine_tuning_are_the_optimizers() -> None:
    given = FinetuneOptions("top", learning_rate=0.5)
    assert given.settings() == {"learning_rate": 0.5, "momentum": 0.9}
    assert replace(given, momentum=0.25).settings() == {"learning_rate": 0.5, "momentum": 0.25}
    assert replace(given, momentum=0.0).settings() == {"learning_rate": 0.5, "momentum": 0.0}
    assert replace(given, optimizer="adam").settings() == {"learning_rate": 0.5}
