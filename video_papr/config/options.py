"""Declaring options: their types and ranges, checked by pydantic, and the words for what a type allows.

A group of options is a class with `@options("name of the group")`, an option one line in it:

    top_k: Positive = option(5, "classes in each answer")
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic import dataclasses as pydantic_dataclasses
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import dataclass_transform

from ..core.errors import ConfigError, did_you_mean

Options = TypeVar("Options")
STRICT = ConfigDict(strict=True, extra="forbid")


def _text(value: Any) -> Any:
    """Numbers are names too: output_dir=5. A leading ~ is the home directory."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return os.path.expanduser(value) if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    """YAML's lists are tuples here, and one entry means a list of it."""
    return tuple(value) if isinstance(value, list | tuple) else value if value is None else (value,)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _distinct(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if any(entry in value[:place] for place, entry in enumerate(value)):
        raise ValueError("must not name anything twice")
    return value


PATH = "path"  # marks the type below
Unset = SkipJsonSchema[None]  # the default of a key that not every option has; nobody may give null
_SOME_TEXT = Field(min_length=1, pattern=r"\S", description="a name or a path")
Text = Annotated[str, BeforeValidator(_text), _SOME_TEXT]
Path = Annotated[Text, PATH]  # what a shell hands over is taken as it is, see `hydra.plain_words`
LARGEST = 2**32 - 1  # of whole numbers, so that sums and products stay within 64 bits
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
Natural = Annotated[int, Field(ge=0, le=LARGEST)]
Number = Annotated[float, Field(allow_inf_nan=False)]
PositiveNumber = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
From0To1 = Annotated[Number, Field(ge=0, le=1)]
Share = Annotated[Number, Field(gt=0, le=1)]
Entry = TypeVar("Entry")
Listed = Annotated[tuple[Entry, ...], BeforeValidator(_listed), AfterValidator(_distinct)]
Some = Annotated[tuple[Entry, ...], Field(min_length=1), BeforeValidator(_listed), AfterValidator(_distinct)]
Tuple = Annotated[Entry, BeforeValidator(_tuple)]


def option(default: Any = dataclasses.MISSING, help: str = "") -> Any:
    """One option: its default, if it has one, and one line about it."""
    metadata = {"help": help}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass_transform(frozen_default=True, field_specifiers=(option, dataclasses.field))
def options(prefix: str = "", *, kw_only: bool = False) -> Callable[[type[Options]], type[Options]]:
    """Makes a class of options a frozen dataclass whose wrong values are one-line errors.

    Args:
        prefix: name of the group, for messages.
    """

    def make(cls: type[Options]) -> type[Options]:
        made: Any = pydantic_dataclasses.dataclass(frozen=True, kw_only=kw_only, config=STRICT)(cls)
        made.prefix, build = prefix, made.__init__

        @wraps(build)
        def init(self: Any, *args: Any, **values: Any) -> None:
            for name, value in values.items():  # pydantic would take true for 1 among listed numbers
                if value is True and name in schemas(made) and not _takes(made, name, "true"):
                    raise _not_allowed(made, name, value)
            try:
                build(self, *args, **values)
            except ValidationError as error:
                raise _in_words(made, values, error) from None

        made.__init__ = init
        return made

    return make


def help_of(cls: type) -> dict[str, str]:
    """Option -> its line of help."""
    return {field.name: field.metadata.get("help", "") for field in dataclasses.fields(cls)}


def defaults_of(cls: type, *names: str) -> dict[str, Any]:
    """The declared defaults of all options that have one, or of those named."""
    found = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
    return {name: found[name] for name in names} if names else found


@cache
def schemas(cls: Any) -> Mapping[str, dict[str, Any]]:
    """Option -> JSON schema of its type."""
    whole = TypeAdapter(cls).json_schema()
    shared = whole.get("$defs", {})
    return {
        name: shared.get(schema.get("$ref", "").rpartition("/")[2], schema)
        for name, schema in whole.get("properties", {}).items()
    }


def allowed(schema: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words: "a number above 0 and at most 1, or null"."""
    phrases, words = _parts(schema)
    if not phrases:
        return "true or false" if words == ["true", "false"] else f"one of {', '.join(words)}"
    return ", or ".join([*phrases, *([" or ".join(words)] if words else [])])


def choices(schema: Mapping[str, Any]) -> list[str]:
    """The words that a value may be, beside true, false and null."""
    inner = schema if "description" in schema else schema.get("items", schema)
    return [word for word in _parts(inner)[1] if word not in ("true", "false", "null")]


def _parts(schema: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Phrases about ranges, and words that may be given as they are."""
    if "description" in schema:
        return [schema["description"]], []
    if "anyOf" in schema:
        parts = [_parts(one) for one in schema["anyOf"]]
        return [p for phrases, _ in parts for p in phrases], [w for _, words in parts for w in words]
    if "enum" in schema or "const" in schema:
        return [], [str(word) for word in schema.get("enum", [schema.get("const")])]
    kind = schema.get("type")
    if kind in ("boolean", "null"):
        return [], ["true", "false"] if kind == "boolean" else ["null"]
    if kind in ("integer", "number"):
        return ["a whole number" * (kind == "integer") + "a number" * (kind == "number") + _range(schema)], []
    if kind == "array":
        many = "a list of one or more" if schema.get("minItems") else "a list"
        return [f"{many}, each {allowed(schema['items'])}"], []
    return ["a mapping of names to values" if kind == "object" else "a value"], []


def _range(schema: Mapping[str, Any]) -> str:
    low, above, high = (schema.get(key) for key in ("minimum", "exclusiveMinimum", "maximum"))
    high = None if high == LARGEST else high  # nobody comes near
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    ends = [f" of at least {low:g}"] if low is not None else []
    ends += [f" above {above:g}"] if above is not None else []
    ends += [f" at most {high:g}"] if high is not None else []
    return " and".join(ends)


def wrong(key: str, value: Any, text: str, hint: str = "") -> ConfigError:
    """The one-line error about a value."""
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return ConfigError(f"{key}={shown}: {text}.{hint}")


def _not_allowed(cls: Any, name: str, value: Any, schema: Mapping[str, Any] | None = None) -> ConfigError:
    schema = schema or schemas(cls)[name]
    if isinstance(value, int) and value > LARGEST:
        return wrong(_key(cls, name), value, f"must be at most {LARGEST}")
    guess = did_you_mean(str(value), choices(schema)) if isinstance(value, str) else ""
    return wrong(_key(cls, name), value, f"must be {allowed(schema)}", guess)


def _key(cls: Any, name: str) -> str:
    return f"{cls.prefix}.{name}" if cls.prefix else name


def read(cls: type[Options], values: Mapping[str, Any]) -> Options:
    """Options from a mapping that a user wrote, where null is a value like any other.

    Raises ConfigError: an unknown or missing key, or a value that is not allowed.
    """
    part: Any = cls
    for name, value in values.items():
        if value is None and name in schemas(part) and not _takes(cls, name, "null"):
            raise _not_allowed(cls, name, value)
    return cls(**{str(name): value for name, value in values.items()})


def check_each(cls: Any, values: Mapping[str, Any]) -> None:
    """Checks values one by one, where others that belong to them are still missing."""
    hints = get_type_hints(cls, include_extras=True)
    for name, value in values.items():
        try:
            TypeAdapter(hints[name], config=STRICT).validate_python(value)
        except ValidationError:
            raise _not_allowed(cls, name, value) from None


def _takes(cls: Any, name: str, word: str) -> bool:
    schema = schemas(cls)[name]
    typed = {"type", "enum", "anyOf"} & schema.keys()
    return not typed or word in _parts(schema)[1]


def _in_words(cls: Any, values: Mapping[str, Any], error: ValidationError) -> ConfigError:
    """pydantic's first error as one line that names the key, its value and what is allowed."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):  # of a rule about several keys
        return cause
    known = [field.name for field in dataclasses.fields(cls)]
    name = str(first["loc"][0]) if isinstance(first["loc"][0], str) else known[first["loc"][0]]
    key = _key(cls, name)
    if first["type"].startswith("missing") and len(first["loc"]) == 1:
        return ConfigError(f"{key} is not set.")
    if first["type"] == "unexpected_keyword_argument":
        return ConfigError(f"{key}: no such key.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    value, schema = values.get(name, first["input"]), schemas(cls)[name]
    value = list(value) if isinstance(value, tuple) else value
    place = next((step for step in first["loc"][1:] if isinstance(step, int)), None)
    if place is not None and "items" in schema and "description" not in schema:  # one entry of a list
        value, schema = value[place] if isinstance(value, list) else value, schema["items"]
    return wrong(key, value, str(cause)) if cause is not None else _not_allowed(cls, name, value, schema)
