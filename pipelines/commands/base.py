"""The typer application, the options that several commands share, and the entry point of the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from featurestore.errors import PenultError, trouble
from pipelines import signals
from pipelines.options import LABEL_SET, MOVED_WEIGHTS

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

Store = Annotated[Path, typer.Option("--store", envvar="PENULT_STORE", help="The feature store's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]
MovedWeights = Annotated[str | None, typer.Option(MOVED_WEIGHTS.flag, help=MOVED_WEIGHTS.help)]
NamedHead = Annotated[
    str | None,
    typer.Option(
        "--head", help="Id of a head, how it begins or ends, or an alias; by default the champion, else the newest."
    ),
]
LabelSet = Annotated[str, typer.Option(help=LABEL_SET.help)]


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
