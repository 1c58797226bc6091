"""The envelope: whatever is not the object that was sealed, byte for byte, is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import msgpack
from xxhash import xxh3_128_digest

from engine.keys import Namespace
from engine.l2.envelope import HEADER_BYTES, EnvelopeError, PayloadHash, check, check_named, seal

SPACE = Namespace("a model", 2, 1, b"f" * 16, "a salt")
KEY = SPACE.prefix + b"h" * 32


def sealed(payload: bytes, key: bytes = KEY, space: Namespace = SPACE) -> bytearray:
    """The whole object."""
    header = bytearray(HEADER_BYTES)
    seal(key, space, memoryview(payload), memoryview(header))
    return header + payload


def opened(content: bytes | bytearray, key: bytes = KEY, space: Namespace = SPACE) -> None:
    view, payload = memoryview(content), PayloadHash()
    # In pieces of which one has the end of the header and the beginning of the payload.
    for start in range(0, len(view), HEADER_BYTES - 96):
        payload.add(view[start : start + HEADER_BYTES - 96])
    check(key, space, view[:HEADER_BYTES], payload)


def refused(content: bytes | bytearray, key: bytes = KEY, space: Namespace = SPACE) -> str:
    with pytest.raises(EnvelopeError) as error:
        opened(content, key, space)
    return str(error.value)


@given(st.binary(max_size=300))
def test_what_was_sealed_is_opened(payload: bytes) -> None:
    content = sealed(payload)
    opened(content)
    assert content[HEADER_BYTES:] == payload


def test_any_flipped_bit_of_any_byte_is_refused() -> None:
    content = sealed(bytes(range(200)))
    for place in range(len(content)):
        content[place] ^= 1 << place % 8
        refused(content)
        content[place] ^= 1 << place % 8
    opened(content)


@given(st.data())
def test_any_other_bytes_anywhere_are_refused(data: st.DataObject) -> None:
    content = sealed(bytes(5000))
    start = data.draw(st.integers(0, len(content) - 1))
    other = data.draw(st.binary(min_size=1, max_size=len(content) - start))
    harmed = content[:start] + other + content[start + len(other) :]
    if harmed != content:
        refused(harmed)


@pytest.mark.parametrize("length", [0, 1, 99, 101, 200])
def test_a_payload_of_another_length_is_refused(length: int) -> None:
    content = sealed(b"x" * 100)
    assert refused((content + b"x" * 100)[: HEADER_BYTES + length]) == f"the payload has 100 bytes instead of {length}"


def test_a_header_before_another_payload_of_the_same_length_is_refused() -> None:
    one, other = sealed(b"1" * 100), sealed(b"2" * 100)
    assert refused(one[:HEADER_BYTES] + other[HEADER_BYTES:]) == "the payload is damaged"


def test_zeros_are_refused() -> None:
    assert refused(bytes(HEADER_BYTES + 100)) == "the header is damaged"


def test_the_object_of_another_chunk_is_refused() -> None:
    assert "another key" in refused(sealed(b"payload", SPACE.prefix + b"o" * 32))


@pytest.mark.parametrize(
    "other",
    [
        Namespace("another model", 2, 1, b"f" * 16, "a salt"),
        Namespace("a model", 4, 1, b"f" * 16, "a salt"),
        Namespace("a model", 2, 0, b"f" * 16, "a salt"),
        Namespace("a model", 2, 1, b"g" * 16, "a salt"),
        Namespace("a model", 2, 1, b"f" * 16, "another salt"),
        Namespace("a modela", 2, 1, b"f" * 16, " salt"),
    ],
    ids=str,
)
def test_the_object_of_another_model_shard_layout_or_tenant_is_refused(other: Namespace) -> None:
    """Even under the same key, as if the 16 bytes that stand for all of this had collided."""
    assert "another key" in refused(sealed(b"payload", KEY, other))


def test_a_header_of_another_version_is_refused_though_it_is_whole() -> None:
    from xxhash import xxh3_128_digest

    content = sealed(b"payload")
    content[7] += 1
    content[HEADER_BYTES - 16 : HEADER_BYTES] = xxh3_128_digest(bytes(content[: HEADER_BYTES - 16]))
    assert refused(content) == "the header is of another format"


def test_names_as_long_as_clients_may_send_them_fit() -> None:
    space = Namespace("m" * 3000, 2, 1, b"f" * 16, "s" * 128)
    opened(sealed(b"payload", KEY, space), KEY, space)


def test_names_that_do_not_fit_are_refused_and_nothing_is_written() -> None:
    header = bytearray(b"before" * 1000)[:HEADER_BYTES]
    with pytest.raises(EnvelopeError, match="names of model and salt take 4"):
        seal(KEY, Namespace("m" * 4000, 2, 1, b"f" * 16, ""), memoryview(b"x"), memoryview(header))
    assert header.startswith(b"beforebefore")


class TestByKeyAlone:
    """`check_named`, which is told no namespace."""

    def test_what_was_sealed_is_whole(self) -> None:
        self.named(sealed(b"payload"))

    def test_any_flipped_bit_of_any_byte_is_refused(self) -> None:
        content = sealed(bytes(range(200)))
        for place in range(len(content)):
            content[place] ^= 1 << place % 8
            with pytest.raises(EnvelopeError):
                self.named(content)
            content[place] ^= 1 << place % 8
        self.named(content)

    @pytest.mark.parametrize(
        "key", [SPACE.prefix + b"i" * 32, Namespace("b", 2, 1, b"f" * 16, "a salt").prefix + b"h" * 32]
    )
    def test_the_object_of_another_key_is_refused(self, key: bytes) -> None:
        with pytest.raises(EnvelopeError, match="another key"):
            self.named(sealed(b"payload"), key)

    def test_a_key_that_its_own_header_contradicts_is_refused(self) -> None:
        other = Namespace("b", 2, 1, b"f" * 16, "a salt")
        with pytest.raises(EnvelopeError, match="another key"):
            self.named(sealed(b"payload", KEY, other))

    @pytest.mark.parametrize("identity", [b"", b"\xc1", b"\x90", msgpack.encode((KEY, "m", 2, 1, b"f", "s", "more"))])
    def test_a_header_that_was_sealed_over_nonsense_is_refused(self, identity: bytes) -> None:
        with pytest.raises(EnvelopeError, match="names no object"):
            self.named(self.forged(identity))

    def test_a_header_that_says_the_same_in_other_bytes_is_refused_as_a_load_would(self) -> None:
        true = msgpack.encode((KEY, "a model", 2, 1, b"f" * 16, "a salt"))
        self.named(self.forged(true))
        longer = true.replace(b"\xa7a model", b"\xd9\x07a model")
        with pytest.raises(EnvelopeError, match="another key"):
            self.named(self.forged(longer))

    @staticmethod
    def named(content: bytes | bytearray, key: bytes = KEY) -> None:
        payload = PayloadHash()
        payload.add(memoryview(content))
        check_named(key, memoryview(content)[:HEADER_BYTES], payload)

    @staticmethod
    def forged(identity: bytes) -> bytes:
        """A header with right hashes around any identity, and no payload."""
        front = struct.pack("<8sQ16sH", b"KVKEEP\0\x01", 0, xxh3_128_digest(b""), len(identity)) + identity
        front = front.ljust(HEADER_BYTES - 16, b"\0")
        return front + xxh3_128_digest(front)
