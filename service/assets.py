"""Where the two contracts are: inside the installed package, or at the root of the checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def openapi_path() -> Path:
    """The OpenAPI document."""
    return _find("openapi.yaml")


def schema_path() -> Path:
    """The JSON schema of the configuration file."""
    return _find("config") / "schema.json"


def _find(name: str) -> Path:
    # NOTE: In a checkout the repository's own file wins: an editable install may have left a copy that has aged.
    in_tree = _PACKAGE.parent / name
    return in_tree if (_PACKAGE.parent / "pyproject.toml").exists() else _PACKAGE / name
