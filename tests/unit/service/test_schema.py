"""The configuration's contract: schema, default file, examples and modules agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from engine import l2_types, policy_names
from service import assets
from service.schema import Schema, compare_modules, defaults, load_schema
from service.settings import load_settings

SCHEMA = load_schema(assets.schema_path())
CONFIG = assets.schema_path().parent
ENVIRON = {
    "KVKEEP_HOST": "127.0.0.1",
    "KVKEEP_PORT": "5555",
    "KVKEEP_L1_SIZE": "2GiB",
    "KVKEEP_S3_KEY_ID": "key",
    "KVKEEP_S3_SECRET": "secret",
    "KVKEEP_VALKEY_URL": "valkey://10.0.0.5:6379/0",
}


def leaves(schema: Schema) -> list[Any]:
    parts = schema["properties"].values()
    return [leaf for part in parts for leaf in (leaves(part) if "properties" in part else [part])]


def test_the_schema_is_a_json_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_every_setting_has_a_description_and_a_default_that_fits() -> None:
    for leaf in leaves(SCHEMA):
        assert leaf["description"].endswith(".")
        Draft202012Validator(leaf).validate(leaf["default"])


def test_the_default_file_has_every_setting_at_its_default() -> None:
    assert yaml.safe_load((CONFIG / "default.yaml").read_text()) == defaults(SCHEMA)


def test_the_default_file_explains_every_setting_in_a_line_of_comment() -> None:
    lines = (CONFIG / "default.yaml").read_text().splitlines()
    settings = [number for number, line in enumerate(lines) if ": " in line and not line.lstrip().startswith("#")]
    assert len(settings) == len(leaves(SCHEMA))
    assert all(lines[number - 1].lstrip().startswith("# ") for number in settings)


@pytest.mark.parametrize("file", sorted((CONFIG / "examples").glob("*.yaml")), ids=lambda file: file.name)
def test_every_example_is_right(file: Path) -> None:
    load_settings(SCHEMA, str(file), (), ENVIRON)


def test_the_schema_names_the_modules_that_exist() -> None:
    assert compare_modules(SCHEMA, policy_names(), l2_types()) == []


def test_a_module_without_a_name_and_a_name_without_a_module_are_differences() -> None:
    tiers = ("fs", *l2_types()[1:])
    assert compare_modules(SCHEMA, ("arc", "fifo", "hit_density", "mru", "s3fifo"), tiers) == [
        "config/schema.json: l1.eviction_policy allows 'lru', but there is no engine/l1/policies/lru_policy.py",
        "engine/l1/policies/mru_policy.py exists, but config/schema.json does not allow 'mru' for l1.eviction_policy",
        "config/schema.json: l2[].type allows 'filesystem', but there is no engine/l2/filesystem_l2.py",
        "engine/l2/fs_l2.py exists, but config/schema.json does not allow 'fs' for l2[].type",
    ]
