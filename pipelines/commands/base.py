"""The typer application, the options that several commands share, and the entry point of the command line."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path, PurePath
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperGroup

from featurestore.errors import PenultError, trouble
from featurestore.options import memory
from featurestore.storage import cache as copies
from featurestore.storage import settings
from featurestore.storage.base import location
from featurestore.storage.settings import OPTIONS
from pipelines import signals
from pipelines.options import LABEL_SET, MOVED_WEIGHTS


class Words(TyperGroup):
    """A group whose commands may have two words, such as ``backbones add`` beside ``backbones``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the first words name."""
        two = " ".join(args[:2])
        return super().resolve_command(ctx, [two, *args[2:]] if two in self.commands else args)


app = typer.Typer(
    name="penult",
    cls=Words,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 110},
    help="Embed an image corpus once with a frozen CNN, keep the features, train and compare heads in seconds.",
    epilog="Exit codes: 0 done, 1 an error, 2 usage, 3 more failures than --max-failure-rate or more images gone than "
    "--max-removed, 4 a data check blocked a retrain, 75 the store is locked.",
)

STORE = typer.Option(
    "--store",
    envvar="PENULT_STORE",
    metavar="PLACE",
    help="The feature store: a folder, or a place in a bucket (s3://, gs://, az://).",
    parser=location,
)
Store = Annotated[PurePath, STORE]
StorageOptions = Annotated[
    list[str],
    typer.Option(
        "--storage-option",
        metavar="KEY=VALUE",
        help=f"Of buckets; repeatable. KEY: {', '.join(OPTIONS)}. Else the usual environment says it.",
    ),
]
CacheFolder = Annotated[
    Path | None,
    typer.Option("--cache", metavar="DIR", help="Folder for copies of what is in buckets; else $PENULT_CACHE says it."),
]
CacheLimit = Annotated[
    int | None,
    typer.Option(
        "--cache-limit",
        envvar="PENULT_CACHE_LIMIT",
        metavar="SIZE",
        parser=memory,
        help="The most that copies may take, such as 20GB; by default a tenth of the disk.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]
MovedWeights = Annotated[str | None, typer.Option(MOVED_WEIGHTS.flag, help=MOVED_WEIGHTS.help)]
NamedHead = Annotated[
    str | None,
    typer.Option(
        "--head", help="Id of a head, how it begins or ends, or an alias; by default the champion, else the newest."
    ),
]
LabelSet = Annotated[str, typer.Option(help=LABEL_SET.help)]


def with_storage_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of buckets and of their copies, which set variables before anything else starts."""
    own = {"storage_option": StorageOptions, "cache": CacheFolder, "cache_limit": CacheLimit}
    hints = get_type_hints(command, include_extras=True) | own
    parameters = [
        parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(command).parameters.items()
    ]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=own[name])
        for name, default in (("storage_option", []), ("cache", None), ("cache_limit", None))
    ]

    @wraps(command)
    def run(storage_option: list[str], cache: Path | None, cache_limit: int | None, **given: Any) -> None:
        settings.use(storage_option)
        copies.keep_in(cache, cache_limit)
        command(**given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = hints
    return run


def print_json(wanted: bool, value: Any) -> None:
    """Print ``value`` as one line of JSON on stdout, if ``wanted``."""
    if not wanted:
        return
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # an ASCII terminal, or a name that is not valid UTF-8
        text = json.dumps(value, allow_nan=False)
    print(text, flush=True)


def main() -> None:
    """Run the command line; print an error as one sentence and exit with its code."""
    try:
        app()
    except PenultError as error:
        print(signals.farewell(str(error)), file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(signals.farewell(trouble(error, "The disk")), file=sys.stderr)
        sys.exit(1)
