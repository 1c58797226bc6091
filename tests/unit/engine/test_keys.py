"""Namespaces of keys, and which salts are allowed."""

from __future__ import annotations

import pytest

from engine.keys import NAMESPACE_BYTES, namespace, salt_is_valid


def test_equal_identities_have_equal_namespaces() -> None:
    assert namespace("m", 2, 1, b"f" * 16, "s") == namespace("m", 2, 1, b"f" * 16, "s")
    assert len(namespace("m", 2, 1, b"f" * 16, "s").prefix) == NAMESPACE_BYTES


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(("n", 2, 1, b"f", "s"), id="model"),
        pytest.param(("m", 3, 1, b"f", "s"), id="world size"),
        pytest.param(("m", 2, 0, b"f", "s"), id="shard"),
        pytest.param(("m", 2, 1, b"g", "s"), id="layout"),
        pytest.param(("m", 2, 1, b"f", "t"), id="salt"),
        pytest.param(("m", 2, 1, b"f", ""), id="no salt"),
        pytest.param(("ms", 2, 1, b"f", ""), id="the salt moved into the model"),
    ],
)
def test_whatever_differs_makes_another_namespace(other: tuple[str, int, int, bytes, str]) -> None:
    assert namespace(*other).prefix != namespace("m", 2, 1, b"f", "s").prefix


@pytest.mark.parametrize("salt", ["", "tenantA", "ü" * 128, "a b\n", "#%:"])
def test_a_salt_may_be_almost_anything(salt: str) -> None:
    assert salt_is_valid(salt)


@pytest.mark.parametrize("salt", ["a" * 129, "a@b", "a/b", "a\\b", "a\0b"])
def test_a_salt_has_at_most_128_characters_and_none_of_four(salt: str) -> None:
    assert not salt_is_valid(salt)
