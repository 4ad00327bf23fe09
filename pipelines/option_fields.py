"""The fields of options classes, walked in one way for the command line and for recipes.

An options class is a dataclass. Each of its fields that has an ``Option`` is an option. A field whose type is an
options class stands for that class's fields. ``Annotated[Class, {"field": Option(...)}]`` overrides the Option of a
field, and None instead of an Option leaves the field out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from featurestore.options import Option


@dataclass(frozen=True)
class Leaf:
    """One option, and the path of the field that gets its value; ``default`` is MISSING if it has to be given."""

    path: tuple[str, ...]
    hint: Any
    default: Any
    option: Option

    @property
    def flag(self) -> str:
        """How the command line calls it."""
        return self.option.flag or "--" + self.path[-1].replace("_", "-")

    @property
    def negated(self) -> bool:
        """Whether the flag is a --no-… flag that turns off what is on by default."""
        return self.default is True and self.flag.startswith("--no-")

    @property
    def key(self) -> str:
        """How a recipe calls it: the flag without dashes, and without the "no" of a --no-… flag."""
        return self.flag.removeprefix("--no-" if self.negated else "--").replace("-", "_")


def unpacked(hint: Any) -> tuple[Any, Mapping[str, Option | None]]:
    """Return the type of a hint, and the Options with which the hint overrides those of the type's fields."""
    if get_origin(hint) is not Annotated:
        return hint, {}
    kind, *extras = get_args(hint)
    return kind, next((extra for extra in extras if isinstance(extra, Mapping)), {})


def leaves(
    kind: Any,
    default: Any = MISSING,
    words: Mapping[str, Option | None] | None = None,
    path: tuple[str, ...] = (),
) -> Iterator[Leaf]:
    """Yield the options of an options class, and of the options classes nested in it.

    Args:
        kind: the options class.
        default: an object of it, whose values are the defaults; MISSING for those of the class.
        words: Options that override those of the fields.
        path: what the paths of the options begin with.
    """
    hints, words = get_type_hints(kind, include_extras=True), words or {}
    for field in fields(kind):
        own = getattr(default, field.name) if default is not MISSING else field.default
        inner, inner_words = unpacked(hints[field.name])
        if is_dataclass(inner):
            yield from leaves(inner, own, {**inner_words, **words}, (*path, field.name))
            continue
        extras = get_args(hints[field.name])[1:] if get_origin(hints[field.name]) is Annotated else ()
        option = words.get(field.name, next((extra for extra in extras if isinstance(extra, Option)), None))
        if option is not None:
            yield Leaf((*path, field.name), inner, own, option)


def made(kind: Any, values: Mapping[tuple[str, ...], Any], default: Any = MISSING) -> Any:
    """Return an object of an options class from values by path; fields without a value are as in ``default``."""
    found: dict[str, Any] = {}
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        inner = {path[1:]: value for path, value in values.items() if path[0] == field.name}
        own = getattr(default, field.name) if default is not MISSING else field.default
        if () in inner:
            found[field.name] = inner[()]
        elif inner:
            found[field.name] = made(unpacked(hints[field.name])[0], inner, own)
        elif own is not MISSING:
            found[field.name] = own
    return kind(**found)


def given(options: Any, words: Mapping[str, Option | None] | None = None) -> Iterator[str]:
    """Yield the flag of each option whose value in an object of an options class is not the class's default."""
    for leaf in leaves(type(options), words=words):
        value = options
        for name in leaf.path:
            value = getattr(value, name)
        if value != leaf.default:
            yield leaf.flag
