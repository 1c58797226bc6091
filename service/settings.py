"""The effective settings: defaults, over them the file, over it the flags; each value with its origin."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from engine import GIB, MIB, EngineSettings, Liveness, RecordingSettings
from service.access import Policy, Token
from service.l2 import check_l2, l2_settings, with_defaults
from service.problems import DEFAULT, MASK, ConfigError, Origin, Problem, SettingPath
from service.quotas import check_quotas, quota_settings
from service.schema import Schema, check, defaults, is_secret, shown
from service.sizes import is_size, parse_size
from service.tokens import Entry, TokenFiles, read_tokens
from service.yaml_source import Source, read_yaml

MINIMUM_L1 = MIB
MINIMUM_RECORDING = MIB


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """The HTTP API's address, how many requests it serves at once, and whose."""

    host: str
    port: int
    threads: int
    tokens: tuple[Token, ...] = ()
    allow_unauthenticated: bool = False
    open_probes: bool = True
    open_metrics: bool = False

    @property
    def policy(self) -> Policy:
        """Who may do what."""
        return Policy(self.tokens, self.allow_unauthenticated, self.open_probes, self.open_metrics)


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Which lines the log has, and how they look."""

    level: str = "info"
    format: str = "auto"


@dataclass(frozen=True, slots=True)
class Setting:
    """One effective value, as `show-config` prints it."""

    path: SettingPath
    value: Any = field(repr=False)
    origin: Origin
    is_secret: bool = False
    """Whether the schema says so."""

    @property
    def masked_value(self) -> Any:
        """The value as it may be shown: nothing of what is secret or comes from the environment."""
        is_empty = self.value in (None, [], {})
        return MASK if (self.is_secret or self.origin.written is not None) and not is_empty else self.value


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the process is configured with."""

    engine: EngineSettings
    http: HttpSettings
    listing: tuple[Setting, ...]
    log: LogSettings = field(default_factory=LogSettings)
    warnings: tuple[str, ...] = ()
    """What is allowed and still not good, one sentence each."""


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
    tokens = read_tokens(list(_token_entries(schema, file or "", layers)))
    found = check(schema, layers.values, layers.origins)
    problems = [*source.problems, *found, *_size_problems(schema, layers), *_quota_problems(schema, layers)]
    problems += _l2_problems(schema, layers)
    problems += _recording_problems(schema, layers)
    if problems or tokens.problems:
        raise ConfigError(_first_of_each([*problems, *tokens.problems]))
    values = _merged(defaults(schema), layers.values)
    values["l2"] = [with_defaults(schema, entry) for entry in values["l2"]]
    return _build(schema, values, layers.origins, tokens, Path(file or "").parent)


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


def _size_problems(schema: Schema, layers: _Layers) -> Iterator[Problem]:
    """What the schema cannot say of a size with a unit: its value in bytes."""
    given = {name: size for name in ("size", "max_size") if _is_size(size := _given(layers.values, "l1", name))}
    for name, size in given.items():
        if parse_size(size) < MINIMUM_L1:
            yield _size_problem(schema, layers, ("l1", name), size, "must be at least 1MiB")
    most, least = given.get("max_size"), given.get("size", defaults(schema)["l1"]["size"])
    if most is not None and parse_size(most) < parse_size(least):
        yield _size_problem(schema, layers, ("l1", "max_size"), most, "must be at least l1.size")


def _recording_problems(schema: Schema, layers: _Layers) -> Iterator[Problem]:
    """What the schema cannot say of a recording."""
    size = _given(layers.values, "recording", "max_file_size")
    if _is_size(size) and parse_size(size) < MINIMUM_RECORDING:
        yield _size_problem(schema, layers, ("recording", "max_file_size"), size, "must be at least 1MiB")
    if _given(layers.values, "recording", "enabled") is True and not _given(layers.values, "recording", "folder"):
        path = ("recording", "enabled")
        yield Problem(layers.origins[path].place, "needs recording.folder", path, True, has_value=True)


def _quota_problems(schema: Schema, layers: _Layers) -> list[Problem]:
    size = _given(layers.values, "l1", "size")
    l1_size = parse_size(size if _is_size(size) else defaults(schema)["l1"]["size"])
    return _found(schema, layers, lambda report: check_quotas(_given(layers.values, "quotas"), l1_size, report))


def _l2_problems(schema: Schema, layers: _Layers) -> list[Problem]:
    return _found(schema, layers, lambda report: check_l2(schema, _given(layers.values, "l2"), report))


def _found(
    schema: Schema, layers: _Layers, look: Callable[[Callable[[SettingPath, str], None]], None]
) -> list[Problem]:
    """What a look at a part of the values reports, by path and message."""
    problems: list[Problem] = []

    def report(path: SettingPath, message: str) -> None:
        value = _given(layers.values, *path)
        seen = shown(schema, path, value, layers.origins)
        problems.append(Problem(layers.origins[path].place, message, path, seen, has_value=True))

    look(report)
    return problems


def _is_size(value: Any) -> bool:
    return type(value) is int or (isinstance(value, str) and is_size(value))


def _size_problem(schema: Schema, layers: _Layers, path: tuple[str, str], size: int | str, message: str) -> Problem:
    seen = shown(schema, path, size, layers.origins)
    return Problem(layers.origins[path].place, message, path, seen, has_value=True)


def _token_entries(schema: Schema, file: str, layers: _Layers) -> Iterator[Entry]:
    """The items of `http.tokens` that can be looked at; what is wrong with others is the schema's business."""
    tokens = _given(layers.values, "http", "tokens")
    for index, item in enumerate(tokens if isinstance(tokens, list) else []):
        name, role, token_file = (_given(item, key) for key in ("name", "role", "file"))
        if not (isinstance(name, str) and isinstance(token_file, str) and token_file):
            continue
        path = ("http", "tokens", index)
        # Beside the configuration, so that it does not matter where the server is started.
        absolute = Path(file).parent / token_file
        seen = shown(schema, (*path, "file"), str(absolute), layers.origins)
        yield Entry(path, layers.origins[*path, "file"].place, name, role, absolute, seen)


def _given(values: Any, *path: str | int) -> Any:
    """What was given at a path, or None, whatever stands there and around it."""
    for key in path:
        if isinstance(values, list) and isinstance(key, int):
            values = values[key] if key < len(values) else None
        else:
            values = values.get(key) if isinstance(values, dict) else None
    return values


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


def _build(
    schema: Schema, values: dict[str, Any], origins: Mapping[SettingPath, Origin], tokens: TokenFiles, folder: Path
) -> Settings:
    server, l1 = values["server"], values["l1"]
    engine = EngineSettings(
        host=server["host"],
        port=server["port"],
        chunk_size=server["chunk_size"],
        hash_algorithm=server["hash_algorithm"],
        liveness=Liveness(**{each.name: server[each.name] for each in fields(Liveness)}),
        l1_size=parse_size(l1["size"]),
        l1_max_size=None if l1["max_size"] is None else parse_size(l1["max_size"]),
        huge_pages=l1["huge_pages"],
        l1_verify=l1["verify"],
        eviction_policy=l1["eviction_policy"],
        pin_budget=None if l1["pin_budget"] is None else parse_size(l1["pin_budget"]),
        quotas=quota_settings(values["quotas"]),
        l2=tuple(l2_settings(entry, folder) for entry in values["l2"]),
        drain_timeout=server["drain_timeout"],
        advisor_enabled=values["advisor"]["enabled"],
        recording=_recording(values["recording"], folder),
    )
    http = HttpSettings(**{**values["http"], "tokens": tuple(tokens.tokens)})
    listing = tuple(
        Setting(path, value, origins.get(path, DEFAULT), is_secret(schema, path)) for path, value in _leaves(values, ())
    )
    return Settings(engine, http, listing, LogSettings(**values["log"]), (*tokens.warnings, *_idle(http)))


def _recording(values: dict[str, Any], folder: Path) -> RecordingSettings:
    """`folder` is where the configuration stands: it does not matter where the server is started."""
    return RecordingSettings(
        enabled=values["enabled"],
        folder=None if values["folder"] is None else str(folder / values["folder"]),
        max_file_size=parse_size(values["max_file_size"]),
        max_files=values["max_files"],
    )


def _idle(http: HttpSettings) -> Iterator[str]:
    """Settings without an effect."""
    if http.tokens and http.allow_unauthenticated:
        yield "http.allow_unauthenticated has no effect while there are http.tokens: every caller needs one"


def _leaves(value: Any, path: SettingPath) -> Iterator[tuple[SettingPath, Any]]:
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from _leaves(part, (*path, name))
    elif isinstance(value, list) and value:
        for index, part in enumerate(value):
            yield from _leaves(part, (*path, index))
    else:
        yield path, value
