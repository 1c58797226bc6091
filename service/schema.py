"""The configuration's contract: what `config/schema.json` says of values, defaults and modules."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from service.problems import MASK, Origin, Problem, SettingPath

Schema = dict[str, Any]


def _is_integer(_checker: Any, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(checker: Any, value: object) -> bool:
    return _is_integer(checker, value) or (isinstance(value, float) and math.isfinite(value))


# NOTE: JSON Schema calls 256.0 an integer, and YAML can write infinity and not-a-number. Neither is meant here.
_TYPES = Draft202012Validator.TYPE_CHECKER.redefine_many({"integer": _is_integer, "number": _is_number})
_Validator: Any = extend(Draft202012Validator, type_checker=_TYPES)  # type: ignore[no-untyped-call]


def load_schema(path: Path) -> Schema:
    """The schema as it stands in the file."""
    schema: Schema = json.loads(path.read_bytes())
    return schema


def defaults(schema: Schema) -> dict[str, Any]:
    """Every setting at its default."""
    return {
        name: defaults(part) if "properties" in part else part["default"] for name, part in schema["properties"].items()
    }


def check(schema: Schema, values: Any, origins: Mapping[SettingPath, Origin]) -> list[Problem]:
    """Everything that is wrong with the values, in the order of the file."""
    errors = _Validator(schema).iter_errors(values)
    return [problem for error in errors for problem in _problems(error, schema, origins)]


def is_secret(schema: Schema, path: SettingPath) -> bool:
    """Whether the schema marks a setting, or the nearest thing around it that is marked at all, as `x-secret`."""
    part, secret = schema, bool(schema.get("x-secret"))
    for key in path:
        part = _inner(part, key) or {}
        secret = part.get("x-secret", secret)
    return secret


def shown(schema: Schema, path: SettingPath, value: Any, origins: Mapping[SettingPath, Origin]) -> Any:
    """What a problem shows of a value: of one from the environment the variable's name, of a secret nothing."""
    origin = origins.get(path)
    if origin is not None and origin.written is not None:
        return origin.written
    return MASK if is_secret(schema, path) else value


def compare_modules(schema: Schema, policies: Sequence[str], l2_types: Sequence[str]) -> list[str]:
    """How the schema's names differ from the modules that exist, both ways."""
    settings = schema["properties"]
    policy = settings["l1"]["properties"]["eviction_policy"]["enum"]
    adapter = settings["l2"]["items"]["properties"]["type"]["enum"]
    return [
        *_differences("l1.eviction_policy", "engine/l1/policies/{}_policy.py", policy, policies),
        *_differences("l2[].type", "engine/l2/{}_l2.py", adapter, l2_types),
    ]


def nodes(schema: Schema, path: SettingPath) -> Iterator[Schema]:
    """What the schema says on the way to a setting, from its section down, as far as the schema knows the way."""
    node = schema
    for part in path:
        inner = _inner(node, part)
        if inner is None:
            return
        yield inner
        node = inner


def variant(items: Schema, entry: Mapping[str, Any]) -> Schema:
    """What the schema of a list's items says beyond that of an entry with the `type` of this one."""
    for part in items.get("allOf", ()):
        if part["if"]["properties"]["type"]["const"] == entry.get("type"):
            then: Schema = part["then"]
            return then
    return {"properties": {}}


def is_marked(schema: Schema, path: SettingPath, mark: str) -> bool:
    """Whether a setting, or the nearest thing around it that has the mark at all, is marked, for instance `x-live`."""
    marks = [node[mark] for node in nodes(schema, path) if mark in node]
    return bool(marks and marks[-1])


def marked(schema: Schema, mark: str, path: SettingPath = ()) -> Iterator[SettingPath]:
    """The settings and sections that carry a mark themselves, in the order of the schema."""
    for name, node in schema.get("properties", {}).items():
        if node.get(mark) is True:
            yield (*path, name)
        yield from marked(node, mark, (*path, name))


def _inner(node: Schema, key: str | int) -> Schema | None:
    """What the schema says of a part; of one that only entries of some types have, what it says for any of these."""
    if isinstance(key, int):
        return node.get("items")
    variants = (part["then"] for part in node.get("allOf", ()))
    found = (each.get("properties", {}).get(key) for each in (node, *variants))
    return next((each for each in found if each is not None), None)


def _differences(setting: str, module: str, named: Sequence[str], found: Sequence[str]) -> Iterator[str]:
    for name in sorted(set(named) - set(found)):
        yield f"config/schema.json: {setting} allows {name!r}, but there is no {module.format(name)}"
    for name in sorted(set(found) - set(named)):
        yield f"{module.format(name)} exists, but config/schema.json does not allow {name!r} for {setting}"


def _problems(error: ValidationError, schema: Schema, origins: Mapping[SettingPath, Origin]) -> Iterator[Problem]:
    path: SettingPath = tuple(error.absolute_path)
    value: Any = error.instance
    if error.validator not in ("additionalProperties", "unevaluatedProperties"):
        seen = shown(schema, path, value, origins)
        yield Problem(_place(path, origins), _message(error, seen is value), path, seen, has_value=True)
        return
    allowed = _schema_of(error)
    known = [*allowed["properties"], *variant(allowed, value).get("properties", {})]
    for key in value:
        if key not in known:
            unknown = (*path, key)
            seen = shown(schema, unknown, value[key], origins)
            yield Problem(_place(unknown, origins), _unknown(key, known), unknown, seen, has_value=True)


def _schema_of(error: ValidationError) -> Schema:
    schema: Any = error.schema
    found: Schema = schema
    return found


def _place(path: SettingPath, origins: Mapping[SettingPath, Origin]) -> str:
    """Where the value stands, or the nearest thing around it that stands anywhere."""
    while path and path not in origins:
        path = path[:-1]
    return origins[path].place if path in origins else ""


def _unknown(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key.lower(), known, n=1)
    if close:
        return f'unknown key, did you mean "{close[0]}"?'
    return f"unknown key, the keys here are {', '.join(known)}"


def _message(error: ValidationError, is_shown: bool) -> str:
    expected: Any = error.validator_value
    value: Any = error.instance
    match error.validator:
        case "type":
            return f"must be {_type_name(expected)}"
        case "enum":
            return _not_in(str(value) if is_shown else "", expected)
        case "pattern":
            return f"must be {_examples(error)}"
        case "minimum" if "examples" in _schema_of(error):
            return f"must be at least {expected}, or {_examples(error)}"
        case "minimum":
            return f"must be at least {expected}"
        case "exclusiveMinimum":
            return f"must be more than {expected}"
        case "maximum":
            return f"must be at most {expected}"
        case "minLength":
            return "must not be empty"
        case "required":
            return f"needs the key {', '.join(key for key in expected if key not in value)}"
    # NOTE: Not the library's own message, which quotes the value.
    return f"must fit the rule {error.validator}: {json.dumps(expected)}"


def _examples(error: ValidationError) -> str:
    return f"written like {', '.join(str(example) for example in _schema_of(error)['examples'])}"


_TYPE_NAMES = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "null": "null",
    "number": "a number",
    "object": "a mapping of keys",
    "string": "text",
}


def _type_name(expected: str | list[str]) -> str:
    names = [expected] if isinstance(expected, str) else expected
    return " or ".join(_TYPE_NAMES[name] for name in names)


def _not_in(value: str, allowed: list[str]) -> str:
    if not allowed:
        return "is not known; there is none yet"
    close = difflib.get_close_matches(value.lower(), allowed, n=1)
    hint = f', did you mean "{close[0]}"?' if close else ""
    return f"is not one of {', '.join(allowed)}{hint}"
