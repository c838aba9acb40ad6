"""Read TOML files, and turn their tables into dataclasses and back."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fasttransfer.core.errors import InputError
from fasttransfer.core.text import escape_name, unescape_name


def read_toml(path: Path, kind: str) -> dict[str, Any]:
    """Return the content of a TOML file; `kind` names in errors what it should hold.

    Raises:
        InputError: the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such {kind} file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not a readable TOML file ({error})") from error


def build_from_table(kind: type[Any], table: Mapping[str, Any], where: str) -> Any:
    """Return a dataclass of type `kind` made from a TOML table: lists become tuples, whole numbers become floats.

    Raises:
        InputError: a name is unknown or missing, or a value has another type.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if unknown := table.keys() - fields.keys():
        raise InputError(f"{where}: {min(unknown)!r} is not known: choose among {', '.join(fields)}")
    values = {}
    for name, field in fields.items():
        if name not in table:
            if field.default is dataclasses.MISSING:
                raise InputError(f"{where}: {name!r} is missing")
            continue
        annotation, value = str(field.type), _from_plain(table[name])
        value = float(value) if annotation.startswith("float") and type(value) is int else value
        for type_ in (str, int, float, tuple):
            if annotation.startswith(type_.__name__) and (not isinstance(value, type_) or isinstance(value, bool)):
                raise InputError(f"{where}: {name} is {value!r}, {annotation} is needed")
        values[name] = value
    return kind(**values)


def to_plain(value: Any) -> Any:
    """Return nested values as TOML has them: without None, with lists for tuples, and all text as `escape_name` has it.

    `build_from_table` turns such text back.
    """
    if isinstance(value, str):
        return escape_name(value)
    if isinstance(value, dict):
        return {k: to_plain(v) for k, v in value.items() if v is not None}
    return [to_plain(v) for v in value] if isinstance(value, tuple) else value


def _from_plain(value: Any) -> Any:
    if isinstance(value, str):
        return unescape_name(value)
    return tuple(map(_from_plain, value)) if isinstance(value, list) else value


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested tables by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
