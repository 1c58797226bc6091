"""Which values are never shown, and what stands in their place. Pure."""

from __future__ import annotations

from typing import Any, Final

from service.schema import Schema, is_marked
from service.settings import Setting

MASK: Final = "***"


def shown(schema: Schema, setting: Setting) -> Any:
    """A setting's value as it may leave the process."""
    return MASK if is_secret(schema, setting) else setting.value


def is_secret(schema: Schema, setting: Setting) -> bool:
    """Whether the value came from the environment, or the schema says that it is secret."""
    return setting.origin.label.startswith("environment ") or is_marked(schema, setting.path, "x-secret")
