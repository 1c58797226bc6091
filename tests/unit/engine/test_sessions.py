"""Sessions hold leases for requests, each share once."""

from __future__ import annotations

from engine.keys import namespace
from engine.l1.cache import Entry
from engine.sessions import Session, Sessions


def entry(key: bytes) -> Entry:
    return Entry(key, namespace("m", 1, 0, bytes(16), ""), 0, 4096, 0.0, 0)


def session(client: bytes, request_id: str, **leases: int) -> Session:
    made = Session(client, request_id, 0.0)
    for key, count in leases.items():
        made.grant([entry(key.encode())], count)
    return made


def test_request_ids_are_unique_within_a_connection_only() -> None:
    sessions = Sessions()
    one, other = session(b"1", "r"), session(b"2", "r")
    sessions.add(one)
    sessions.add(other)
    assert len(sessions) == 2
    assert sessions.get(b"1", "r") is one
    assert sessions.get(b"2", "r") is other
    assert sessions.get(b"3", "r") is None


def test_a_share_is_taken_once_for_each_reader() -> None:
    sessions = Sessions()
    sessions.add(session(b"1", "r", a=2))
    assert sessions.take("r", b"a") is not None
    assert sessions.take("r", b"a") is not None
    assert sessions.take("r", b"a") is None


def test_a_share_belongs_to_its_request_and_object() -> None:
    sessions = Sessions()
    sessions.add(session(b"1", "r", a=1))
    assert sessions.take("r", b"b") is None
    assert sessions.take("other", b"a") is None
    assert sessions.take("r", b"a") is not None


def test_where_two_connections_have_the_request_nobody_knows_whose_share_to_take() -> None:
    sessions = Sessions()
    other = session(b"2", "r", b=1)
    sessions.add(session(b"1", "r", a=1))
    sessions.add(other)
    assert sessions.take("r", b"b") is None
    held = sessions.held("r", b"b")
    assert held is not None
    assert held.key == b"b"
    assert sessions.held("r", b"c") is None
    assert sessions.held("other", b"b") is None
    sessions.remove(other)
    assert sessions.take("r", b"a") is not None


def test_a_removed_session_gives_nothing() -> None:
    sessions = Sessions()
    one, other = session(b"1", "r", a=1), session(b"2", "r")
    sessions.add(one)
    sessions.add(other)
    sessions.remove(one)
    assert list(sessions) == [other]
    assert sessions.take("r", b"a") is None
    sessions.remove(other)
    assert sessions.take("r", b"a") is None
    assert len(sessions) == 0


def test_what_is_given_back_is_what_is_left() -> None:
    one = session(b"1", "r", a=3, b=1, c=1)
    sessions = Sessions()
    sessions.add(one)
    sessions.take("r", b"a")
    sessions.take("r", b"b")
    held = one.give_back(b"a")
    assert held is not None
    assert (held[0].key, held[1]) == (b"a", 2)
    assert [one.give_back(key) for key in (b"a", b"b", b"x")] == [None, None, None]
    assert list(one.leases) == [b"c"]
    assert one.leased_bytes == 4096


def test_what_a_session_holds_is_counted_in_bytes_until_the_last_share_is_gone() -> None:
    one = session(b"1", "r", a=2, b=1)
    assert one.leased_bytes == 2 * 4096
    one.take(b"a")
    assert one.leased_bytes == 2 * 4096
    one.take(b"a")
    assert one.leased_bytes == 4096
    one.take(b"a")
    one.give_back(b"a")
    assert one.leased_bytes == 4096
    one.give_back(b"b")
    assert (one.leased_bytes, one.leases) == (0, {})


def test_a_page_shows_the_sessions_that_are_there() -> None:
    sessions = Sessions()
    one, other, third = session(b"1", "r"), session(b"2", "r"), session(b"3", "r")
    for each in (one, other, third):
        sessions.add(each)
    assert sessions.page(0, 2).members == [one, other]
    sessions.remove(other)
    assert sessions.page(0, 3).members == [one, third]
    assert sessions.page(0, 2).next_place == 2
    back = session(b"4", "r")
    sessions.add(back)
    assert sessions.page(0, 3).members == [one, back, third]
    assert sessions.page(0, 3).next_place is None
