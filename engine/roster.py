"""Numbered seats for members that come and go, so that a walk over them can stop anywhere and go on later. Pure."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Page(NamedTuple, Generic[T]):
    """A part of a walk over members, and the place to go on at; None after the last one."""

    members: list[T]
    next_place: int | None


class Roster(Generic[T]):
    """Members by seat. A member keeps its seat until it leaves; then the seat is given to the next one who comes.

    So a walk in the order of the seats meets everyone who was there from its start to its end exactly once, however
    much comes and goes meanwhile. All of it is O(1), a page costs as much as the seats it looks at.
    """

    def __init__(self) -> None:
        self._seats: list[T | None] = []
        self._free: list[int] = []

    def __len__(self) -> int:
        """The number of seats, taken or not: how far a walk has to go."""
        return len(self._seats)

    def add(self, member: T) -> int:
        """Returns the member's seat."""
        if self._free:
            seat = self._free.pop()
            self._seats[seat] = member
        else:
            seat = len(self._seats)
            self._seats.append(member)
        return seat

    def remove(self, seat: int) -> None:
        self._seats[seat] = None
        self._free.append(seat)

    def page(self, seat: int, count: int) -> Page[T]:
        """Who sits on the `count` seats from `seat` on."""
        end = seat + count
        members = [member for member in self._seats[seat:end] if member is not None]
        return Page(members, end if end < len(self._seats) else None)
