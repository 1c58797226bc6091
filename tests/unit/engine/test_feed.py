"""What one thread notes for another is bounded, and what does not fit is counted."""

from __future__ import annotations

from engine.feed import Feed


def test_items_come_out_in_order() -> None:
    feed = Feed[str](10)
    feed.put("a", 1)
    feed.put("b", 2)
    assert [feed.take(), feed.take(), feed.take()] == ["a", "b", None]


def test_what_does_not_fit_is_dropped_and_counted() -> None:
    feed = Feed[str](10)
    feed.put("a", 8)
    feed.put("b", 3)
    feed.put("c", 2)
    assert [feed.take(), feed.take(), feed.take()] == ["a", "c", None]
    assert feed.dropped == 3


def test_there_is_room_again_for_what_was_taken() -> None:
    feed = Feed[int](4)
    for number in range(100):
        feed.put(number, 4)
        assert feed.take() == number
    assert feed.dropped == 0
