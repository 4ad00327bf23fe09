"""The tables of a recipe: which options each fills, what its keys are called, and how their values are read."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, replace
from datetime import date
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from featurestore.errors import UsageError
from featurestore.options import Option
from featurestore.splits import Split
from pipelines.backbones import MIN_INPUT_SIZE
from pipelines.backbones.engine_options import check_request
from pipelines.option_fields import Leaf, leaves, made
from pipelines.options import CompareOptions, EmbedOptions, TrackOptions
from pipelines.retraining.logical_date import checked, with_date
from pipelines.retraining.options import (
    ChecksOptions,
    KeepOptions,
    LabelsOptions,
    NotifyOptions,
    PromoteOptions,
    PublishOptions,
    SourceOptions,
)
from pipelines.sources.places import is_foreign, is_uri
from pipelines.written_options import CropFlags, WrittenOptions

MAX_SHOWN = 100  # characters of a wrong value

_WORDS = {str: "a text", Path: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_ITEMS: TypeAdapter[list[str | int | float]] = TypeAdapter(list[str | int | float])


class Refused(Exception):
    """What is wrong with a recipe; ``place`` is the table, or the table and the key, that it is about."""

    def __init__(self, said: str, *place: str) -> None:
        super().__init__(said)
        self.place = place


@dataclass(frozen=True)
class EmbedTable:
    """How to embed what is new."""

    options: Annotated[EmbedOptions, {"label_set": None, "runner_arguments": Option("Options of the Beam runner.")}] = (
        EmbedOptions()
    )
    crop: CropFlags = CropFlags()

    def finished(self) -> EmbedOptions:
        """Return the options, checked as the job will check them before any work.

        Raises:
            UsageError: an option is invalid, for a backbone that is in the table.
        """
        from pipelines.backbones import kept
        from pipelines.backbones.table import resolve

        options = self.crop.put_into(self.options)
        size = options.input_size or MIN_INPUT_SIZE
        if kept.finder(options.backbone) is None:  # a kept one is known to its store alone
            size = resolve(
                options.backbone, layer=options.layer, pooling=options.pooling, input_size=options.input_size
            ).input_size
        check_request(options.engine, size)
        return options


_OF_THE_NIGHT = dict.fromkeys(("feature_set", "label_set", "views", "views_set", "val", "test", "seed", "tensorboard"))


@dataclass(frozen=True)
class CompareTable:
    """Which heads to compare, and how."""

    written: Annotated[WrittenOptions, {"sets": None}] = WrittenOptions()
    options: Annotated[CompareOptions, _OF_THE_NIGHT] = CompareOptions()

    def finished(self) -> CompareOptions:
        """Return the options with what is written as text or in a file put in.

        Raises:
            UsageError: it cannot be read, or two options exclude each other.
        """
        return self.written.put_into(self.options)


@dataclass(frozen=True)
class Table:
    """One table of a recipe.

    Attributes:
        name: of the table.
        kind: the options class whose options are its keys.
        finish: makes the job's options of an object of that class, if they are not the same.
        paths: keys with paths, which are relative to the recipe's folder.
        dated: keys with texts that may have the logical date in them.
    """

    name: str
    kind: Any
    finish: Callable[[Any], Any] = lambda options: options
    paths: tuple[str, ...] = ()
    dated: tuple[str, ...] = ()

    @cached_property
    def keys(self) -> dict[str, Leaf]:
        """The table's keys. A key does not say again what its table says: --split-seed is ``seed`` in [split]."""
        return {leaf.key.removeprefix(self.name + "_"): leaf for leaf in leaves(self.kind)}

    def read(self, given: Any, folder: Path) -> Any:
        """Return the options that a table gives, checked, with ``{date}`` as written; ``folder`` is the recipe's.

        Raises:
            Refused: a key is unknown or missing, or a value is invalid.
        """
        if not isinstance(given, dict):
            raise Refused(f"Expected: a table [{self.name}]. Got: {_shown(given)}.", self.name)
        for key in given:
            if key not in self.keys:
                raise Refused(
                    f"Expected: a key of [{self.name}]{hint(key, self.keys)}. Got: {key[:MAX_SHOWN]}.", self.name, key
                )
        values = {key: self._value(key, value, folder) for key, value in given.items()}
        for key, leaf in self.keys.items():
            if leaf.default is MISSING and key not in values:
                raise Refused(f"Expected: {key}, which has no default. Got: none.", self.name)
        try:
            return self._made(values)
        except UsageError as error:
            raise Refused(self._in_keys(str(error)), self.name, *self._culprit(values, str(error))) from error

    def on(self, day: date, options: Any) -> Any:
        """Return options that ``read`` returned with the date in place of ``{date}``."""
        names = [self.keys[key].path[0] for key in self.dated]
        return replace(options, **{name: _each(getattr(options, name), lambda t: with_date(t, day)) for name in names})

    def _value(self, key: str, given: Any, folder: Path) -> Any:
        try:
            value = _read(self.keys[key], given)
            value = _each(value, checked) if key in self.dated else value
        except UsageError as error:
            raise Refused(self._in_keys(str(error)), self.name, key) from error
        at_default = key not in self.paths or value == self.keys[key].default
        return value if at_default else _each(value, lambda path: _from(folder, path))

    def _made(self, values: Mapping[str, Any]) -> Any:
        options = self.finish(made(self.kind, {self.keys[key].path: value for key, value in values.items()}))
        options.check()
        return options

    def _culprit(self, values: Mapping[str, Any], said: str) -> list[str]:
        """Return a key without which the options are not refused in the same words; one that they name, if they do."""
        named = re.findall(r"\w+", self._in_keys(said))
        for left_out in sorted(values, key=lambda key: key not in named):
            if self.keys[left_out].default is not MISSING:
                try:
                    self._made({key: value for key, value in values.items() if key != left_out})
                except UsageError as error:
                    if str(error) == said:
                        continue
                return [left_out]
        return [key for key in values if self.keys[key].default is MISSING][:1]

    def _in_keys(self, said: str) -> str:
        """Return an error message with the table's keys in place of the flags of the command line."""
        flags = {leaf.flag: key for key, leaf in self.keys.items()}
        return re.sub(r"--[A-Za-z][\w-]*", lambda flag: flags.get(flag[0], flag[0]), said)


TABLES = {
    table.name: table
    for table in (
        Table("source", SourceOptions, paths=("location",), dated=("location",)),
        Table("labels", LabelsOptions, paths=("file",), dated=("file",)),
        Table("embed", EmbedTable, EmbedTable.finished, paths=("weights",)),
        Table("compare", CompareTable, CompareTable.finished, paths=("search",)),
        Table("split", Split),
        Table("checks", ChecksOptions),
        Table("promote", PromoteOptions),
        Table("publish", PublishOptions, paths=("to",), dated=("to",)),
        Table("notify", NotifyOptions, dated=("command",)),
        Table("track", TrackOptions, dated=("experiment",)),
        Table("keep", KeepOptions),
    )
}


def hint(name: str, known: Iterable[str]) -> str:
    """Return what helps who wrote an unknown key: the table that has it, else the nearest known name, else all."""
    homes = [table.name for table in TABLES.values() if name in table.keys]
    if homes:
        return f"; {name} is one of [{homes[0]}]"
    folded = {one.lower(): one for one in known}
    nearest = difflib.get_close_matches(name.lower(), folded, n=1)
    return f"; the nearest is {folded[nearest[0]]}" if nearest else f": {', '.join(folded.values())}"


def _read(leaf: Leaf, given: Any) -> Any:
    """Return the field's value for a value of a recipe.

    Raises:
        UsageError: the value is of another type, or its text cannot be parsed.
    """
    if given == "" and leaf.default is None:
        return None
    for spelled in _spellings(leaf.option, given):
        try:
            return _adapter(leaf.hint).validate_json(json.dumps(spelled), strict=True)
        except (ValidationError, TypeError):  # TypeError: a date or a time, which JSON has not
            continue
    raise UsageError(f"Expected: {_expected(leaf)}. Got: {_shown(given)}.")


def _spellings(option: Option, given: Any) -> Iterator[Any]:
    """Yield the ways to take a value: as it is, as what its text says, as one of several, as text of several."""
    yield given
    if isinstance(given, str):
        yield [given] if option.parse is None else option.parse(given)
    elif option.many:
        yield _joined(given if isinstance(given, list) else [given])
        if isinstance(given, list):
            yield [_joined(item) for item in given]


def _joined(items: Any) -> Any:
    """Return a list of texts and numbers as the command line writes it, with commas; anything else as it is."""
    try:
        return ",".join(map(str, _ITEMS.validate_python(items, strict=True)))
    except ValidationError:
        return items


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _expected(leaf: Leaf) -> str:
    kind = next((part for part in get_args(leaf.hint) if part is not type(None)), leaf.hint)
    if get_origin(leaf.hint) is tuple or get_origin(kind) is list:
        return "a text or a list of texts"
    if leaf.option.many:
        return "a text, a number or a list of them"
    if leaf.option.parse is not None:
        return f"{_WORDS[kind]}, or a text that is a {str(leaf.option.metavar).lower()}"
    return _WORDS[kind]


def _shown(value: Any) -> str:
    """Return a value about as TOML writes it, not longer than a message can bear."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except TypeError:  # a date or a time in it
        text = str(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


def _each(value: Any, change: Callable[[str], Any]) -> Any:
    """Return a text or path changed, or each text of several, or None."""
    if isinstance(value, tuple):
        return tuple(change(text) for text in value)
    return None if value is None else type(value)(change(str(value)))


def _from(folder: Path, text: str) -> str:
    """Return a path, with ``~`` expanded, from a folder on; a URI and an empty text as they are."""
    if not text or is_uri(text) or is_foreign(text):
        return text
    return str(folder / os.path.expanduser(text))  # noqa: PTH111
