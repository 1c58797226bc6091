"""The sample: which chunks are in it, and what its hits say of all references."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from engine.advisor.sample import STRATA, Piece, Sample
from engine.traffic import References
from tests.unit.engine.advisor.traffic import object_key


def note(
    blocks: Sequence[int], first: int = 0, counted: int | None = None, *, asked: int = 0, salt: str = ""
) -> References:
    keys = [object_key(block) for block in blocks]
    return References("r", ("m", 1, salt), keys, 1, first, len(blocks) if counted is None else counted, asked, 100, 0)


def only(sample: Sample, found: References) -> Piece:
    """What of one note is in the sample."""
    (piece,) = sample.read([found])
    return piece


def known(sample: Sample, found: References) -> Piece:
    """Reads a note, as if it was then found out what of it hits."""
    piece = only(sample, found)
    sample.know(piece)
    return piece


def ids(piece: Piece) -> set[int]:
    return {sampled.id for sampled in (*piece.before, *piece.now)}


def half() -> Sample:
    sample = Sample()
    sample.lower(0.5)
    return sample


def test_at_first_everything_is_in_the_sample() -> None:
    sample = Sample()
    piece = known(sample, note(range(10), first=4))
    assert (len(piece.before), len(piece.now)) == (4, 6)
    assert (sample.rate, sample.references) == (1.0, 6)


def test_a_chunk_is_in_the_sample_always_or_never() -> None:
    sample = half()
    first = only(sample, note(range(1000)))
    assert ids(first) == ids(only(sample, note(range(1000))))
    assert len(first.now) == pytest.approx(500, abs=60)


def test_what_leaves_at_a_lower_rate_is_what_is_above_the_threshold() -> None:
    sample = Sample()
    everything = ids(only(sample, note(range(1000))))
    threshold = sample.lower(0.3)
    assert ids(only(sample, note(range(1000)))) == {id_ for id_ in everything if id_ < threshold}


def test_a_lower_rate_scales_what_was_counted() -> None:
    sample = Sample()
    known(sample, note(range(1000)))
    sample.lower(0.3)
    assert sample.references == 300


def test_equal_tokens_of_other_salts_are_other_chunks_and_sampled_apart() -> None:
    sample = half()
    one, two = (ids(only(sample, note(range(1000), salt=salt))) for salt in ("", "tenant"))
    assert not one & two


def test_a_lookup_is_read_in_the_order_of_the_prompt_and_one_object_a_chunk() -> None:
    keys = [object_key(block) for block in range(4)]
    other = [b"n" * 16 + key[16:] for key in keys]
    suffix_first = [key for pair in zip(other, keys, strict=True) for key in reversed(pair)][::-1]
    found = References("r", ("m", 1, ""), suffix_first, -2, 0, 4, 9, 100, 0)
    sample = Sample()
    assert only(sample, found).now[0].id == only(Sample(), note(range(4))).now[0].id
    assert [each.id for each in only(sample, found).now] == [each.id for each in only(Sample(), note(range(4))).now]
    assert sample.asked == 18


def test_what_was_not_asked_for_is_no_reference() -> None:
    sample = Sample()
    piece = known(sample, note(range(10), first=2, counted=6))
    assert [each.stratum for each in piece.now] == [0] * 4 + [-1] * 4
    assert sample.references == 4


def test_strata_tell_how_often_a_chunk_was_seen_before() -> None:
    sample = Sample()
    strata = [only(sample, note([7])).now[0].stratum for _ in range(9)]
    assert strata == [0, 1, 2, 2, 3, 3, 3, 3, 4]


def test_the_chunk_before_what_is_new_is_followed_and_the_last_one_is_not() -> None:
    piece = only(Sample(), note(range(5), first=2))
    assert [each.is_followed for each in (*piece.before, *piece.now)] == [False, True, True, True, False]


def test_the_part_that_hits_is_weighed_by_all_references_of_its_stratum() -> None:
    sample = half()
    for _ in range(2):
        # Of these no two share a counter.
        known(sample, note(range(7000, 8000), asked=1000))
    hits = [0.0] * STRATA
    hits[1] = sample.counts[1]
    assert abs(sample.counts[1] - 500) > 10, "this sample is not so near to a half"
    assert sample.hit_ratio(hits) == pytest.approx(0.5)


def test_a_chunk_in_every_request_hits_though_it_is_not_in_the_sample() -> None:
    sample = half()
    outside = next(block for block in range(100) if not only(sample, note([block])).now)
    sample = half()
    for request in range(1000):
        known(sample, note([outside, 1000 + request], asked=2))
    assert sample.hit_ratio([0.0] * STRATA) == pytest.approx(0.5, abs=0.02)


def test_what_was_asked_for_and_never_stored_is_a_miss() -> None:
    sample = Sample()
    for _ in range(2):
        known(sample, note(range(100), asked=200))
    hits = [0.0] * STRATA
    hits[1] = 100
    assert sample.hit_ratio(hits) == pytest.approx(0.25)


def test_nothing_asked_for_hits_nothing() -> None:
    assert Sample().hit_ratio([0.0] * STRATA) == 0.0


def test_counters_do_not_fill_up() -> None:
    sample = Sample()
    for start in range(0, 600_000, 20_000):
        only(sample, note(range(start, start + 20_000)))
    fresh = only(sample, note(range(1_000_000, 1_001_000)))
    assert sum(each.stratum == 0 for each in fresh.now) > 400


def test_notes_read_together_are_what_they_are_alone() -> None:
    notes = [note(range(start, start + 30), first=start % 7, salt=str(start % 2)) for start in range(0, 300, 30)]
    notes.append(note([]))
    assert half().read(notes) == [only(half(), each) for each in notes]
