"""Recipes of scheduled retrains: a TOML file whose tables are the options of the jobs that a night runs.

A key is an option of the command line without its dashes: ``--shard-images 512`` is ``shard_images = 512`` in [embed].
"""

from __future__ import annotations

import codecs
import hashlib
import inspect
import json
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from datetime import date
from os import PathLike
from pathlib import Path
from typing import Any

from featurestore.errors import UsageError
from pipelines.options import CompareOptions, EmbedOptions, TrackOptions
from pipelines.retraining.key_lines import key_lines
from pipelines.retraining.options import (
    ChecksOptions,
    KeepOptions,
    LabelsOptions,
    NotifyOptions,
    PromoteOptions,
    PublishOptions,
    SourceOptions,
)
from pipelines.retraining.tables import MAX_SHOWN, TABLES, Refused, Table, hint
from pipelines.sources.uris import printable

MAX_BYTES, MAX_NAME = 2**16, 100
WITHOUT_OUTCOME = ("notify", "track", "keep")  # tables that do not change what a night decides
LEAST: dict[str, dict[str, Any]] = {
    "source": {"location": "photos"},
    "compare": {"heads": ["ncm", "logreg"]},
    "promote": {"rule": "better"},
}


@dataclass(frozen=True)
class Recipe:
    """A recipe, checked, with its relative paths made absolute and the logical date put in.

    Attributes:
        path: of the file, absolute.
        name: what people call it; by default the file's name without its ending.
        date: the logical date.
        digest: sha256, in hex, of all that decides what a night does but for the date. Comments, the order of keys,
            keys that are at their default, [notify], [track], [keep] and the name make no difference.
        source, labels, embed, compare, checks, promote, publish, notify, track, keep: the tables. The label set of
            [labels] is that of ``embed`` and ``compare`` too, and [split] is in ``compare``.
    """

    path: Path
    name: str
    date: date
    digest: str
    source: SourceOptions
    labels: LabelsOptions
    embed: EmbedOptions
    compare: CompareOptions
    checks: ChecksOptions
    promote: PromoteOptions
    publish: PublishOptions
    notify: NotifyOptions
    track: TrackOptions
    keep: KeepOptions


def read_recipe(path: str | PathLike[str], date: date) -> Recipe:
    """Read and check a recipe; ``date`` is the logical date, which takes the place of ``{date}``.

    Raises:
        UsageError: the file cannot be read or is no TOML, or a table, a key or a value is wrong. The message names
            the file, the line if it is certain, the table and the key, and says what was expected.
    """
    file = Path(path).absolute()
    text = _text(Path(path))
    try:
        told = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(_broken(path, str(error))) from error
    try:
        name = _name(told.pop("name", ""), file)
        for key, value in told.items():
            if key not in TABLES:
                got = f"[{key[:MAX_SHOWN]}]" if isinstance(value, dict) else key[:MAX_SHOWN]
                near = hint(key, ["name", *TABLES])
                raise Refused(f"Expected: name or a table of a recipe{near}. Got: {got}.", key)
        tables = {table: TABLES[table].read(told.get(table, {}), file.parent) for table in TABLES}
    except Refused as refused:
        line = key_lines(text).get(refused.place)
        where = f"{path}, line {line}" if line else f"{path}"
        at, *inside = refused.place
        about = " ".join([f"[{at}]", *(key[:MAX_SHOWN] for key in inside)]) + ": " if at in TABLES else ""
        raise UsageError(f"{where}: {_one_line(about + str(refused))}") from refused
    return _recipe(file, name, date, tables)


def template() -> str:
    """Return a recipe with all keys: those of the least recipe, and the others commented out, at their defaults."""
    head = """\
        # A recipe of `penult retrain`. Keys that are commented out are at their defaults; "" stands for none.
        # {date} in a source, a label file, a target, a command or an experiment is the logical date;
        # {date:%Y/%m/%d} gives it in another form.

        # What people call it; by default the name of this file.
        #name = ""
        """
    return textwrap.dedent(head) + "".join(_described(table, LEAST.get(table.name, {})) for table in TABLES.values())


def _text(path: Path) -> str:
    """Return the text of a recipe's file.

    Raises:
        UsageError: it is no regular file, too large, not UTF-8, or cannot be read.
    """
    try:
        if path.is_file():
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
            got = "a larger file"
        else:
            data, got = None, "no regular file" if path.exists() else "no such file"
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        data, got = None, getattr(error, "strerror", None) or str(error)
    if data is None or len(data) > MAX_BYTES:
        raise UsageError(f"{path}: Expected: a recipe, a TOML file of up to {MAX_BYTES:,} bytes. Got: {got}.")
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        got = f"the byte 0x{data[error.start]:02x}"
        raise UsageError(f"{path}, line {line}: Expected: text in UTF-8. Got: {got}.") from error


def _broken(path: str | PathLike[str], said: str) -> str:
    """Return the message for what is no TOML, with the line that tomllib tells at the end of its own."""
    at = re.search(r" \(at line (\d+), column (\d+)\)$", said)
    if at is None:
        return f"{path}: Expected: TOML. Got: {said}."
    return f"{path}, line {at[1]}: Expected: TOML. Got, in column {at[2]}: {said[: at.start()]}."


def _one_line(said: str) -> str:
    """Return a message whose keys and texts, which may have any character, show those that do not print as escapes."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in said)


def _name(given: Any, file: Path) -> str:
    if not isinstance(given, str) or len(given) > MAX_NAME or not given.isprintable():
        raise Refused(f"Expected: name, a line of text of up to {MAX_NAME} characters. Got: {given!r:.100}.", "name")
    return given or printable(file.stem)


def _recipe(file: Path, name: str, day: date, tables: Mapping[str, Any]) -> Recipe:
    """Return the recipe of tables as they are written: digested, then with the date put in, and joined."""
    digest = _digest({table: options for table, options in tables.items() if table not in WITHOUT_OUTCOME})
    dated = {table: TABLES[table].on(day, options) for table, options in tables.items()}
    split, label_set = dated.pop("split"), dated["labels"].label_set
    dated["embed"] = replace(dated["embed"], label_set=label_set)
    data = replace(dated["compare"].data, label_set=label_set, split=split)
    dated["compare"] = replace(dated["compare"], data=data)
    return Recipe(file, name, day, digest, **dated)


def _digest(tables: Mapping[str, Any]) -> str:
    given = {table: found for table, options in tables.items() if (found := _given(options))}
    text = json.dumps(given, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _given(options: Any) -> dict[str, Any]:
    """Return as JSON what is not at its default, so that an option of a later penult changes no digest."""
    found: dict[str, Any] = {}
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            value = _given(value)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if value != default and value != {}:
            found[field.name] = value
    return found


def _described(table: Table, active: Mapping[str, Any]) -> str:
    """Return a table of the template: what it is, and its keys, each after what it does."""
    about = inspect.getdoc(table.kind) or ""
    return "\n".join(["", *_comment(about.replace("``", "")), f"[{table.name}]", *_keys(table, active), ""])


def _keys(table: Table, active: Mapping[str, Any]) -> Iterator[str]:
    for key, leaf in table.keys.items():
        yield from _comment(f"false: {leaf.option.help}" if leaf.negated else leaf.option.help)
        value = active.get(key, "" if leaf.default is None else leaf.default)
        yield f"{'' if key in active else '#'}{key} = {json.dumps(value, ensure_ascii=False)}"


def _comment(text: str) -> list[str]:
    return [f"# {line}".rstrip() for line in textwrap.wrap(" ".join(text.split()), 110)]
