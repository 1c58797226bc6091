"""What became of objects: the last reason is told, nothing stored is called new, and memory is bounded."""

from __future__ import annotations

from hashlib import blake2b

import pytest

from engine.l1.history import History


def key(number: int) -> bytes:
    """16 bytes of a namespace and 32 of a chunk, spread as digests are."""
    return blake2b(b"namespace", digest_size=16).digest() + blake2b(b"%d" % number, digest_size=32).digest()


ONE, TWO, THREE = (key(number) for number in range(3))


def table(*keys: bytes) -> dict[bytes, object]:
    return dict.fromkeys(keys)


@pytest.fixture
def history() -> History:
    return History()


def test_what_was_never_there_was_never_stored(history: History) -> None:
    history.stored(ONE)
    assert history.reason(TWO) == "never_stored"


def test_the_last_reason_is_told(history: History) -> None:
    history.left(ONE, "refused")
    assert history.reason(ONE) == "refused"
    history.stored(ONE)
    history.left(ONE, "evicted")
    assert history.reason(ONE) == "evicted"
    history.left(ONE, "cleared")
    assert history.reason(ONE) == "cleared"


def test_the_reasons_of_those_that_left_last_are_remembered(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.l1.history._REMEMBERED", 2)
    for each in (ONE, TWO):
        history.stored(each)
        history.left(each, "evicted")
    history.left(ONE, "evicted")
    history.left(THREE, "refused")
    assert [history.reason(each) for each in (ONE, TWO, THREE)] == ["evicted", "not_remembered", "refused"]


def test_a_refusal_that_is_forgotten_was_no_store(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.l1.history._REMEMBERED", 1)
    history.left(ONE, "refused")
    history.left(TWO, "refused")
    assert history.reason(ONE) == "never_stored"


def test_everything_of_one_clear_is_known_at_no_cost(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.l1.history._REMEMBERED", 1)
    history.cleared(table(ONE, TWO, THREE))
    assert [history.reason(each) for each in (ONE, TWO, THREE)] == ["cleared"] * 3


def test_a_clear_of_nothing_does_not_make_the_last_one_forgotten(history: History) -> None:
    history.cleared(table(ONE))
    history.cleared(table())
    assert history.reason(ONE) == "cleared"


def test_of_another_clear_only_that_is_known(history: History) -> None:
    for each in (ONE, TWO):
        history.stored(each)
    history.cleared(table(ONE))
    history.cleared(table(TWO))
    assert [history.reason(each) for each in (ONE, TWO)] == ["not_remembered", "cleared"]


def test_of_a_clear_of_too_many_none_is_known(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.l1.history._CLEARED_LIMIT", 2)
    for each in (ONE, TWO, THREE):
        history.stored(each)
    history.cleared(table(ONE, TWO))
    assert history.reason(ONE) == "cleared"
    history.cleared(table(ONE, TWO, THREE))
    assert history.reason(ONE) == "not_remembered"


def test_what_is_stored_again_after_a_clear_has_the_reason_of_its_own_end(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.l1.history._REMEMBERED", 1)
    history.cleared(table(ONE, TWO))
    history.stored(ONE)
    history.left(ONE, "evicted")
    assert [history.reason(each) for each in (ONE, TWO)] == ["evicted", "cleared"]
    history.left(THREE, "evicted")
    assert history.reason(ONE) == "not_remembered", "it was not cleared that time"


def test_of_nothing_that_was_stored_it_is_ever_said_that_it_never_was(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.l1.history._REMEMBERED", 100)
    stored, others = range(20_000), range(20_000, 40_000)
    for number in stored:
        history.stored(key(number))
        history.left(key(number), "evicted")
    said = {history.reason(key(number)) for number in stored}
    assert said == {"evicted", "not_remembered"}
    taken_for_old = sum(history.reason(key(number)) == "not_remembered" for number in others)
    assert taken_for_old <= 5


def test_its_memory_does_not_grow_with_what_comes_and_goes(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.l1.history._REMEMBERED", 10)
    filter_bytes = len(history._stored)
    for number in range(1000):
        history.stored(key(number))
        history.left(key(number), "evicted")
    assert (len(history._left), len(history._stored)) == (10, filter_bytes)


def test_keys_that_differ_in_their_namespace_only_are_apart(history: History) -> None:
    other = blake2b(b"another", digest_size=16).digest() + ONE[16:]
    history.stored(ONE)
    assert history.reason(other) == "never_stored"
