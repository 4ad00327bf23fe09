"""The decorator that makes command-line options from the fields of options classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from pipelines.option_fields import Leaf, leaves, made, unpacked


def by_fields(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of a command that is an options class by one command-line option per option of that class.

    See ``pipelines.option_fields`` for what the options of a class are.

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
    groups: dict[str, tuple[Any, Any, list[Leaf]]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        kind, words = unpacked(hints[name])
        if is_dataclass(kind):
            default = MISSING if parameter.default is inspect.Parameter.empty else parameter.default
            groups[name] = kind, default, list(leaves(kind, default, words, (name,)))
            kept += [_parameter(leaf) for leaf in groups[name][2]]
        else:
            kept.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(command)
    def run(**given: Any) -> None:
        for name, (kind, default, options) in groups.items():
            values = {leaf.path[1:]: _value(leaf, given.pop(_name(leaf))) for leaf in options}
            given[name] = made(kind, values, default)
        command(**given)

    run.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in kept}
    return run


def _name(leaf: Leaf) -> str:
    return "_".join(leaf.path)


def _value(leaf: Leaf, given: Any) -> Any:
    """Return the field's value for a value of the command line, or the other way round."""
    return not given if leaf.negated else given


def _parameter(leaf: Leaf) -> inspect.Parameter:
    """Return the parameter from which typer makes the option."""
    told: dict[str, Any] = {"help": leaf.option.help, "metavar": leaf.option.metavar}
    if leaf.option.parse is not None:
        told["parser"] = leaf.option.parse
    return inspect.Parameter(
        _name(leaf),
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if leaf.default is MISSING else _value(leaf, leaf.default),
        annotation=Annotated[leaf.hint, typer.Option(leaf.flag, **told)],
    )
