"""The decorator that makes command-line options from the fields of options classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from featurestore.options import Option


@dataclass(frozen=True)
class _Leaf:
    """One command-line option, and the path of the field that gets its value."""

    path: tuple[str, ...]
    hint: Any
    default: Any
    option: Option

    @property
    def negated(self) -> bool:
        """Whether the flag is a --no-… flag that turns off what is on by default."""
        return self.default is True and (self.option.flag or "").startswith("--no-")

    def value(self, given: Any) -> Any:
        """Return the field's value for a value of the command line, or the other way round."""
        return not given if self.negated else given

    @property
    def parameter(self) -> inspect.Parameter:
        """The parameter from which typer makes the option."""
        told: dict[str, Any] = {"help": self.option.help, "metavar": self.option.metavar}
        if self.option.parse is not None:
            told["parser"] = self.option.parse
        flag = self.option.flag or "--" + self.path[-1].replace("_", "-")
        return inspect.Parameter(
            "_".join(self.path),
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if self.default is MISSING else self.value(self.default),
            annotation=Annotated[self.hint, typer.Option(flag, **told)],
        )


def by_fields(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of a command that is an options class by one command-line option per field of that class.

    An options class is a dataclass. Each of its fields that has an ``Option`` becomes a command-line option. A field
    whose type is an options class is replaced by that class's fields in the same way.
    ``Annotated[Class, {"field": Option(...)}]`` overrides the Option of a field, and None instead of an Option leaves
    the field out of the command line.

    Example:
        >>> from pipelines.options import ReportOptions
        >>> @by_fields
        ... def show(options: ReportOptions = ReportOptions()) -> None:
        ...     print(options.gallery_seed)
        >>> show(options_gallery_seed=7, options_tensorboard=None)  # as typer calls it
        7
    """
    hints = get_type_hints(command, include_extras=True)
    kept: list[inspect.Parameter] = []
    groups: dict[str, tuple[Any, Any, list[_Leaf]]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        kind, words = _unpacked(hints[name])
        if is_dataclass(kind):
            default = MISSING if parameter.default is inspect.Parameter.empty else parameter.default
            groups[name] = kind, default, list(_leaves(kind, default, words, (name,)))
            kept += [leaf.parameter for leaf in groups[name][2]]
        else:
            kept.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(command)
    def run(**given: Any) -> None:
        for name, (kind, default, leaves) in groups.items():
            values = {leaf.path[1:]: leaf.value(given.pop(leaf.parameter.name)) for leaf in leaves}
            given[name] = _made(kind, default, values)
        command(**given)

    run.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in kept}
    return run


def _unpacked(hint: Any) -> tuple[Any, Mapping[str, Option | None]]:
    """Return the type of a hint, and the Options with which the hint overrides those of the type's fields."""
    if get_origin(hint) is not Annotated:
        return hint, {}
    kind, *extras = get_args(hint)
    return kind, next((extra for extra in extras if isinstance(extra, Mapping)), {})


def _leaves(kind: Any, default: Any, words: Mapping[str, Option | None], path: tuple[str, ...]) -> Iterator[_Leaf]:
    """Yield the command-line options of an options class, and of the options classes nested in it."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        own = getattr(default, field.name) if default is not MISSING else field.default
        inner, inner_words = _unpacked(hints[field.name])
        if is_dataclass(inner):
            yield from _leaves(inner, own, {**inner_words, **words}, (*path, field.name))
            continue
        extras = get_args(hints[field.name])[1:] if get_origin(hints[field.name]) is Annotated else ()
        option = words.get(field.name, next((extra for extra in extras if isinstance(extra, Option)), None))
        if option is not None:
            yield _Leaf((*path, field.name), inner, own, option)


def _made(kind: Any, default: Any, values: Mapping[tuple[str, ...], Any]) -> Any:
    """Return an object of an options class from the options' values; fields without an option are as in ``default``."""
    made: dict[str, Any] = {}
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        inner = {path[1:]: value for path, value in values.items() if path[0] == field.name}
        own = getattr(default, field.name) if default is not MISSING else field.default
        if () in inner:
            made[field.name] = inner[()]
        elif inner:
            made[field.name] = _made(_unpacked(hints[field.name])[0], own, inner)
        elif own is not MISSING:
            made[field.name] = own
    return kind(**made)
