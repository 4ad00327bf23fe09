"""Make a command's options of the fields of its options' classes."""

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
    """One option: where its value goes, and what the command line is told of it."""

    path: tuple[str, ...]
    hint: Any
    default: Any
    option: Option

    @property
    def negated(self) -> bool:
        """Whether the flag says that something is not done that is done by default."""
        return self.default is True and (self.option.flag or "").startswith("--no-")

    def value(self, given: Any) -> Any:
        """The field's value from the command line's."""
        return not given if self.negated else given

    @property
    def parameter(self) -> inspect.Parameter:
        """What typer makes an option of."""
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
    """Replace each parameter of a command that is an options' class by the fields of that class.

    A field of such a class that has an ``Option`` becomes an option of the command line. A field that is itself such a
    class is replaced likewise. ``Annotated[Class, {"field": Option(...)}]`` says other words of a field than its class,
    and None in the place of the Option leaves the field out.

    Example:
        >>> @app.command()  # doctest: +SKIP
        ... @by_fields
        ... def train(store: Store, options: TrainOptions = TrainOptions()) -> None:
        ...     train_head(store, options)
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
    """A type and the words of its own for some of its fields."""
    if get_origin(hint) is not Annotated:
        return hint, {}
    kind, *extras = get_args(hint)
    return kind, next((extra for extra in extras if isinstance(extra, Mapping)), {})


def _leaves(kind: Any, default: Any, words: Mapping[str, Option | None], path: tuple[str, ...]) -> Iterator[_Leaf]:
    """The options of a class, those of the classes in it too."""
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
    """An object of a class from its options' values; what has no option is as in ``default``."""
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
