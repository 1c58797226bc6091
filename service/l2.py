"""The tiers of L2 in the configuration: defaults by type, what the schema cannot say of them, and their settings."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from engine import MIB, L2Settings, PrefetchSettings, ScrubSettings
from service.problems import SettingPath
from service.schema import Schema, defaults, variant
from service.sizes import is_size, parse_size

_OF_THE_TIER: Final = (
    "type",
    "name",
    "store_policy",
    "selective_uses",
    "promote",
    "prefetch",
    "required",
    "threads",
    "scrub",
)
_SECTIONS: Final = ("prefetch", "scrub")
"""Those of them that have settings of their own."""
_SIZES: Final = ("capacity", "keep_free", "segment", "local_buffer")
"""Settings of adapters that are written with a unit."""
_PATHS: Final = ("path", "tls_ca")
"""Settings of adapters that are relative to the folder of the configuration."""

_BOUNDED: Final = ("filesystem", "memory")
"""Types that keep to a capacity; with the others their own servers say how much they hold."""

Report = Callable[[SettingPath, str], None]


def with_defaults(schema: Schema, entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of `l2` that the schema allows, with every setting that its type has."""
    items = schema["properties"]["l2"]["items"]
    common = {name: part for name, part in items["properties"].items() if name not in ("type", *_SECTIONS)}
    own = variant(items, entry)["properties"]
    filled = {name: part["default"] for name, part in {**common, **own}.items() if "default" in part}
    sections = {name: {**defaults(items["properties"][name]), **entry.get(name, {})} for name in _SECTIONS}
    return {"type": entry["type"], **filled, **entry, **sections, "name": entry.get("name") or entry["type"]}


def check_l2(schema: Schema, entries: Any, report: Report) -> None:
    """What the schema cannot say, with the path and what is wrong there: names are given once, a Valkey has one
    address, a scrub ends some day, and the client libraries are installed."""
    items = schema["properties"]["l2"]["items"]
    names: dict[str, int] = {}
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        name = (entry.get("name") or entry.get("type")) if isinstance(entry, dict) else None
        if not isinstance(name, str):
            continue
        if name in names:
            key = "name" if entry.get("name") else "type"
            report(("l2", index, key), f"l2[{names[name]}] is called {name!r} too; give each a name of its own")
        names.setdefault(name, index)
        package = variant(items, entry).get("x-package")
        if package is not None and find_spec(package) is None:
            report(("l2", index, "type"), f"needs the package {package}: pip install 'kvkeep[{entry['type']}]'")
        if entry.get("type") == "valkey" and bool(entry.get("url")) == bool(entry.get("nodes")):
            report(("l2", index, "type"), "needs either url, for a single server, or nodes, for a cluster")
        if _is_slow(entry.get("scrub")):
            report(("l2", index, "scrub", "rate"), "must be at least 1MiB")


def l2_settings(entry: dict[str, Any], folder: Path) -> L2Settings:
    """Of an entry with defaults; `folder` is where the configuration stands."""
    options = {name: _option(name, value, folder) for name, value in entry.items() if name not in _OF_THE_TIER}
    if entry["type"] not in _BOUNDED:
        del options["capacity"]
    return L2Settings(
        type=entry["type"],
        name=entry["name"],
        options=options,
        store_policy=entry["store_policy"],
        selective_uses=entry["selective_uses"],
        promote=entry["promote"],
        prefetch=PrefetchSettings(**entry["prefetch"]),
        required=entry["required"],
        threads=entry["threads"],
        scrub=ScrubSettings(**{**entry["scrub"], "rate": parse_size(entry["scrub"]["rate"])}),
    )


def _is_slow(scrub: Any) -> bool:
    rate = scrub.get("rate") if isinstance(scrub, dict) else None
    return isinstance(rate, str) and is_size(rate) and parse_size(rate) < MIB


def _option(name: str, value: Any, folder: Path) -> Any:
    if name in _SIZES and value is not None:
        return parse_size(value)
    return str(folder / value) if name in _PATHS and value is not None else value
