"""The effective settings: defaults, over them the file, over it the flags; each value with its origin."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from engine import GIB, MIB, EngineSettings, L2Settings, Liveness
from service.problems import DEFAULT, ConfigError, Origin, Problem, SettingPath
from service.schema import Schema, check, defaults
from service.sizes import is_size, parse_size
from service.yaml_source import Source, read_yaml

MINIMUM_L1 = MIB


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """The HTTP API's address and how many requests it serves at once."""

    host: str
    port: int
    threads: int


@dataclass(frozen=True, slots=True)
class Setting:
    """One effective value, as `show-config` prints it."""

    path: SettingPath
    value: Any
    origin: Origin


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the process is configured with."""

    engine: EngineSettings
    http: HttpSettings
    listing: tuple[Setting, ...]


@dataclass(frozen=True, slots=True)
class Override:
    """A value given by a flag."""

    flag: str
    section: str
    name: str
    value: Any

    @property
    def path(self) -> SettingPath:
        """The setting that it overrides."""
        return (self.section, self.name)

    @property
    def origin(self) -> Origin:
        """The flag, as origin and as the place to change it."""
        return Origin(f"flag {self.flag}", f"flag {self.flag}")


@dataclass(slots=True)
class _Layers:
    """Values gathered so far, with the origin of each leaf and section."""

    values: dict[str, Any]
    origins: dict[SettingPath, Origin] = field(default_factory=dict)


def load_settings(
    schema: Schema, file: str | None, overrides: tuple[Override, ...], environ: Mapping[str, str]
) -> Settings:
    """The effective settings. Raises ConfigError with every problem of the file and the flags."""
    source = _read_file(file, environ) if file is not None else Source({})
    layers = _with_overrides(source, overrides)
    problems = [
        *source.problems,
        *check(schema, layers.values, layers.origins),
        *_size_problems(layers, defaults(schema)["l1"]["size"]),
    ]
    if problems:
        raise ConfigError(_first_of_each(problems))
    return _build(_merged(defaults(schema), layers.values), layers.origins)


def gibibytes(text: str) -> int:
    """Bytes from a number of GiB, as `--l1-size-gb` takes them. Raises ValueError."""
    number = float(text)
    if not math.isfinite(number) or number <= 0:
        raise ValueError(f"{text!r} is not a positive number of GiB")
    return int(number * GIB)


def _read_file(file: str, environ: Mapping[str, str]) -> Source:
    try:
        text = Path(file).read_bytes()
    except OSError as error:
        raise ConfigError([Problem(file, f"cannot be read: {error.strerror}")]) from error
    return read_yaml(text, file, environ)


def _with_overrides(source: Source, overrides: tuple[Override, ...]) -> _Layers:
    layers = _Layers(source.values, dict(source.origins))
    for override in overrides:
        section, name = override.section, override.name
        # NOTE: Where the file has something else than a section, the check reports that; the flag has no place to go.
        if isinstance(layers.values, dict) and isinstance(layers.values.setdefault(section, {}), dict):
            layers.values[section][name] = override.value
            layers.origins[override.path] = override.origin
    _lower_policy(layers.values)
    return layers


def _lower_policy(values: Any) -> None:
    """Policy names are accepted in any case; the schema and the engine know them in lower case."""
    l1 = values.get("l1") if isinstance(values, dict) else None
    if isinstance(l1, dict) and isinstance(l1.get("eviction_policy"), str):
        l1["eviction_policy"] = l1["eviction_policy"].lower()


def _size_problems(layers: _Layers, default_size: str) -> Iterator[Problem]:
    """What the schema cannot say of a size with a unit: its value in bytes."""
    l1 = layers.values.get("l1") if isinstance(layers.values, dict) else None
    sizes = l1 if isinstance(l1, dict) else {}
    given: dict[str, int | str] = {name: sizes[name] for name in ("size", "max_size") if _is_size(sizes.get(name))}
    for name, value in given.items():
        if parse_size(value) < MINIMUM_L1:
            yield _size_problem(layers, name, value, "must be at least 1MiB")
    most, least = given.get("max_size"), given.get("size", default_size)
    if most is not None and parse_size(most) < parse_size(least):
        yield _size_problem(layers, "max_size", most, f"must be at least l1.size, which is {least}")


def _is_size(value: Any) -> bool:
    return type(value) is int or (isinstance(value, str) and is_size(value))


def _size_problem(layers: _Layers, name: str, value: Any, message: str) -> Problem:
    path = ("l1", name)
    return Problem(layers.origins[path].place, message, path, value, has_value=True)


def _first_of_each(problems: list[Problem]) -> list[Problem]:
    """One problem per setting: that a value which could not be read is also of the wrong type is no news."""
    first: dict[tuple[str, SettingPath], Problem] = {}
    for problem in problems:
        first.setdefault((problem.place, problem.path), problem)
    return list(first.values())


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        merged[name] = _merged(base[name], value) if isinstance(value, dict) and name in base else value
    return merged


def _build(values: dict[str, Any], origins: Mapping[SettingPath, Origin]) -> Settings:
    server, l1 = values["server"], values["l1"]
    engine = EngineSettings(
        host=server["host"],
        port=server["port"],
        chunk_size=server["chunk_size"],
        hash_algorithm=server["hash_algorithm"],
        liveness=Liveness(**{each.name: server[each.name] for each in fields(Liveness)}),
        l1_size=parse_size(l1["size"]),
        l1_max_size=None if l1["max_size"] is None else parse_size(l1["max_size"]),
        eviction_policy=l1["eviction_policy"],
        l2=tuple(_adapter(entry) for entry in values["l2"]),
        drain_timeout=server["drain_timeout"],
    )
    listing = tuple(Setting(path, value, origins.get(path, DEFAULT)) for path, value in _leaves(values, ()))
    return Settings(engine, HttpSettings(**values["http"]), listing)


def _adapter(entry: dict[str, Any]) -> L2Settings:
    return L2Settings(entry["type"], {name: value for name, value in entry.items() if name != "type"})


def _leaves(value: Any, path: SettingPath) -> Iterator[tuple[SettingPath, Any]]:
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from _leaves(part, (*path, name))
    elif isinstance(value, list) and value:
        for index, part in enumerate(value):
            yield from _leaves(part, (*path, index))
    else:
        yield path, value
