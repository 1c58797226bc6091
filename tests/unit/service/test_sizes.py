"""Sizes as people write them."""

from __future__ import annotations

import pytest

from service.sizes import is_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 << 30),
        ("512MiB", 512 << 20),
        ("1.5GiB", 3 << 29),
        ("1 TiB", 1 << 40),
        ("2GB", 2 * 10**9),
        ("500MB", 500 * 10**6),
        ("3kB", 3000),
        ("3KB", 3000),
        ("3KiB", 3072),
        ("0.1TiB", (1 << 40) // 10),
        ("17B", 17),
        (12345, 12345),
    ],
)
def test_a_size_is_read_exactly(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "4", "4gib", "4 Gi", "GiB", "-1GiB", "1,5GiB", "1.GiB", "4GiBs", "1e3MB", "4  GiB"]
)
def test_anything_else_is_refused(text: str) -> None:
    assert not is_size(text)
    with pytest.raises(ValueError, match="is not a size such as 4GiB"):
        parse_size(text)
