"""Settings are declared once, as fields of dataclasses; YAML files and command lines are made from them here."""

import argparse
import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from .errors import PixWordError
from .files import expand

Settings = TypeVar("Settings")
_NAMES = {int: "an integer", float: "a number", str: "text", bool: "true or false", list: "a list", Path: "a path"}


def setting(
    default: Any, text: str, *, choices: Sequence[str] = (), metavar: str | None = None, path: bool = False,
    positional: bool = False,
) -> Any:  # fmt: skip
    """A field with its help text; a list default is copied for every instance.

    Args:
        default: the value where nothing is given.
        text: help.
        choices: all values, if they are few.
        metavar: what stands for a value in the help.
        path: texts of the field are paths, which may begin with ``~``; of a list, one flag may name several, as a
            shell expands them. A field of type ``Path`` needs no mark.
        positional: a list that takes what stands on the command line without a flag, at least one.
    """
    metadata = {"help": text, "choices": tuple(choices), "metavar": metavar, "path": path, "positional": positional}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def flag(name: str) -> str:
    """The command-line flag of a setting: ``batch_tokens`` to ``--batch-tokens``."""
    return "--" + name.replace("_", "-")


def default_of(f: Field) -> Any:  # type: ignore[type-arg]
    return f.default_factory() if f.default_factory is not MISSING else f.default


def build(cls: type[Settings], values: Mapping[str, Any], where: str = "settings") -> Settings:
    """An instance of ``cls`` from plain values, checked: unknown keys and wrong types raise `PixWordError`."""
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise PixWordError(f"{where}: unknown key {shown(unknown[0])}; known keys are {', '.join(sorted(known))}")
    return cls(**{name: convert(known[name], value, where) for name, value in values.items()})


def convert(f: Field, value: Any, where: str) -> Any:  # type: ignore[type-arg]
    """Check a value against its field: ints serve as floats, text as paths, a single value as a list of one."""
    kind, optional = _kind(f.type)
    if value is None and optional:
        return None
    value = _as_meant(value, kind)
    if kind is list:
        value = [value] if isinstance(value, str) else value
        if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
            return [_at_home(v, f) for v in value]
    elif kind is Path and isinstance(value, str | Path):
        return expand(Path(value))
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _number(value)
    elif kind in (int, str, bool) and type(value) is kind:
        if f.metadata["choices"] and value not in f.metadata["choices"]:
            raise PixWordError(
                f"{where}: {f.name} must be one of {', '.join(f.metadata['choices'])}, got {shown(value)}"
            )
        return _at_home(value, f) if kind is str else value
    raise PixWordError(f"{where}: {f.name} must be {_NAMES[kind]}, got {shown(value)}")


def _at_home(value: str, f: Field) -> str:  # type: ignore[type-arg]
    """The value, with ``~`` expanded where it is a path."""
    return str(expand(Path(value))) if f.metadata["path"] and value.startswith("~") else value


def shown(value: Any) -> str:
    """A value as a message shows it: one line, shortened, however large or deep it is."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # ValueError: Python writes no integer of more than 4,300 digits
        return f"a {type(value).__name__} that is too large to show"
    return text if len(text) <= 100 else text[:97] + "..."


def named(name: str) -> str:
    """A name as a message shows it; one that comes from a file may hold anything."""
    return name if len(name) <= 300 and name.isprintable() else shown(name)


def counted(number: int, what: str) -> str:
    """A number of things: ``1 document``, ``1,200 documents``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def assigned(items: Sequence[str], where: str) -> dict[str, Any]:
    """Values by name of items NAME=VALUE, each JSON where it is any, and else text.

    Raises:
        PixWordError: an item without a name or a sign of equality.
    """
    found = dict[str, Any]()
    for item in items:
        name, sign, text = item.partition("=")
        if not name or not sign:
            raise PixWordError(f"{where} must be NAME=VALUE, got {shown(item)}")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def _number(value: float) -> float:
    """A whole number may be too large for a float."""
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _as_meant(value: Any, kind: Any) -> Any:
    """YAML 1.1 reads ``3e-4`` as text and ``on`` as true; give back what was meant."""
    if kind is float and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return {True: "on", False: "off"}[value] if kind is str and isinstance(value, bool) else value


def add_arguments(
    parser: argparse.ArgumentParser, cls: type, title: str, *, required: Sequence[str] = (), defaults: bool = True
) -> None:
    """Give ``parser`` a group with one flag a field; flags that are not used leave no value behind.

    Args:
        parser: the parser.
        cls: a settings dataclass.
        title: of the group, in the help.
        required: names of settings that must be given.
        defaults: tell the dataclass's defaults in the help; not where a preset decides them.
    """
    group = parser.add_argument_group(title)
    for f in fields(cls):
        if f.metadata.get("positional"):
            group.add_argument(f.name, nargs="+", metavar=f.metadata["metavar"], help=f.metadata["help"])
            continue
        kind, _ = _kind(f.type)
        text, options = f.metadata["help"], dict[str, Any](default=argparse.SUPPRESS, required=f.name in required)
        if defaults and default_of(f) not in (None, [], "") and kind is not bool:
            text += f" (default {default_of(f)})"
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            of = str if kind is list else kind
            options |= {"type": _path if f.metadata["path"] or of is Path else of, "metavar": f.metadata["metavar"]}
            several = {"action": "extend", "nargs": "+"} if f.metadata["path"] else {"action": "append"}
            options |= several if kind is list else {}
            options |= {"choices": f.metadata["choices"], "metavar": None} if f.metadata["choices"] else {}
        group.add_argument(flag(f.name), dest=f.name, help=text.replace("%", "%%"), **options)


def _path(text: str) -> str:
    """A path from the command line; an empty one, of a variable that is not set, would be the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty; a variable may not be set")
    return text


def _kind(annotation: Any) -> tuple[Any, bool]:
    """The plain type of an annotation such as ``Path | None``, and whether None is allowed."""
    if isinstance(annotation, types.UnionType):
        (kind,) = [a for a in get_args(annotation) if a is not type(None)]
        return _kind(kind)[0], True
    return get_origin(annotation) or annotation, False
