"""Who may do what, as a table: no server, no requests."""

from __future__ import annotations

import hmac

import pytest

from service.access import (
    ANONYMOUS,
    NEEDS,
    AccessControl,
    Asked,
    Policy,
    Refusal,
    Token,
    digest,
    exposures,
    is_loopback,
)

READER, OPERATOR = "r" * 20, "o" * 20
TOKENS = (Token("grafana", "reader", digest(READER)), Token("alice", "operator", digest(OPERATOR)))
GUARDED = Policy(TOKENS)
ELSEWHERE = "192.0.2.7"


def ask(need: str, token: str | None = None, **more: str) -> Asked:
    header = None if token is None else f"Bearer {token}"
    return Asked(**{"need": need, "peer": "127.0.0.1", "authorization": header, "host": "localhost:8080", **more})


@pytest.mark.parametrize(
    ("need", "nobody", "reader", "operator"),
    [
        ("probe", None, None, None),
        ("metrics", Refusal.NO_TOKEN, None, None),
        ("reader", Refusal.NO_TOKEN, None, None),
        ("operator", Refusal.NO_TOKEN, Refusal.ROLE, None),
    ],
)
@pytest.mark.parametrize("peer", ["127.0.0.1", ELSEWHERE])
def test_with_tokens_every_operation_needs_one_also_on_this_machine(need, nobody, reader, operator, peer) -> None:
    assert GUARDED.decide(ask(need, peer=peer)).refusal == nobody
    assert GUARDED.decide(ask(need, READER, peer=peer)).refusal == reader
    assert GUARDED.decide(ask(need, OPERATOR, peer=peer)).refusal == operator


@pytest.mark.parametrize("need", NEEDS)
def test_a_wrong_token_is_as_good_as_none_and_told_apart(need: str) -> None:
    decision = GUARDED.decide(ask(need, "x" * 20))
    assert decision.who == ANONYMOUS
    assert decision.refusal == (None if need == "probe" else Refusal.INVALID_TOKEN)


def test_probes_and_metrics_are_open_by_setting() -> None:
    closed, opened = Policy(TOKENS, open_probes=False), Policy(TOKENS, open_metrics=True)
    assert closed.decide(ask("probe")).refusal == Refusal.NO_TOKEN
    assert closed.decide(ask("probe", READER)).refusal is None
    assert opened.decide(ask("metrics")).refusal is None


def test_the_callers_name_is_its_tokens() -> None:
    assert GUARDED.decide(ask("reader", READER)).who == "grafana"
    assert GUARDED.decide(ask("operator", READER)).who == "grafana"
    assert GUARDED.decide(ask("operator", OPERATOR)).who == "alice"
    assert GUARDED.decide(ask("probe")).who == ANONYMOUS
    assert Policy().decide(ask("operator", OPERATOR)).who == ANONYMOUS


@pytest.mark.parametrize("need", NEEDS)
def test_without_tokens_this_machine_may_do_everything(need: str) -> None:
    for peer in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
        assert Policy().decide(ask(need, peer=peer)).refusal is None


@pytest.mark.parametrize("peer", [ELSEWHERE, "::ffff:192.0.2.7", "2001:db8::1", "fe80::1%eth0", "10.0.0.1", "", "x"])
def test_without_tokens_others_only_read(peer: str) -> None:
    found = {need: Policy().decide(ask(need, peer=peer)).refusal for need in NEEDS}
    assert found == {"probe": None, "metrics": None, "reader": None, "operator": Refusal.FROM_ELSEWHERE}
    assert Policy(allow_unauthenticated=True).decide(ask("operator", peer=peer)).refusal is None


@pytest.mark.parametrize("header", ["Bearer {}", "bearer {}", "BEARER {}", "Bearer   {}", "Bearer {} "])
def test_the_scheme_is_written_in_any_case(header: str) -> None:
    assert GUARDED.decide(ask("operator", authorization=header.format(OPERATOR))).refusal is None


@pytest.mark.parametrize(
    ("header", "refusal"),
    [
        ("", Refusal.NO_TOKEN),
        ("Basic {}", Refusal.NO_TOKEN),
        ("{}", Refusal.NO_TOKEN),
        ("Bearer", Refusal.INVALID_TOKEN),
        ("Bearer ", Refusal.INVALID_TOKEN),
        ("Bearer{}", Refusal.NO_TOKEN),
        ("Bearer\t{}", Refusal.NO_TOKEN),
        ("Bearer {} {}", Refusal.INVALID_TOKEN),
        ("Bearer {}, Bearer {}", Refusal.INVALID_TOKEN),
        ("Bearer {}=", Refusal.INVALID_TOKEN),
        ("Bearer \xff", Refusal.INVALID_TOKEN),
        ("Bearer {}\n", Refusal.INVALID_TOKEN),
    ],
)
def test_what_is_no_bearer_header_lets_nobody_in(header: str, refusal: Refusal) -> None:
    asked = ask("operator", authorization=header.replace("{}", OPERATOR))
    assert GUARDED.decide(asked).refusal == refusal


def test_a_digest_does_not_open_anything() -> None:
    for text in (digest(OPERATOR).hex(), ""):
        assert GUARDED.caller(f"Bearer {text}") is None


@pytest.mark.parametrize("token", [READER, OPERATOR, "x" * 20, ""])
def test_every_token_is_compared_whatever_was_sent(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    """So that the time an answer takes does not tell where in the list a token is, or that it is none."""
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(a) or compare(a, b))
    GUARDED.caller(f"Bearer {token}")
    assert compared == [each.digest for each in TOKENS]


@pytest.mark.parametrize(
    ("headers", "refusal"),
    [
        ({}, None),
        ({"origin": "http://localhost:8080", "fetch_site": "same-origin"}, None),
        ({"origin": "HTTP://LOCALHOST:8080"}, None),
        ({"origin": "http://localhost:3000"}, Refusal.CROSS_SITE),
        ({"origin": "http://localhost"}, Refusal.CROSS_SITE),
        ({"origin": "http://evil.example"}, Refusal.CROSS_SITE),
        ({"origin": "null"}, Refusal.CROSS_SITE),
        ({"origin": ""}, Refusal.CROSS_SITE),
        ({"origin": "file://localhost:8080"}, Refusal.CROSS_SITE),
        ({"fetch_site": "cross-site"}, Refusal.CROSS_SITE),
        ({"fetch_site": "Cross-Site"}, Refusal.CROSS_SITE),
        ({"fetch_site": "none"}, None),
        ({"origin": "http://127.0.0.1:8080", "host": "127.0.0.1:8080"}, None),
        ({"origin": "http://[::1]:8080", "host": "[::1]:8080"}, None),
        ({"origin": "https://[::1", "host": "[::1"}, Refusal.CROSS_SITE),
    ],
)
def test_a_page_of_another_site_changes_nothing(headers: dict[str, str], refusal: Refusal | None) -> None:
    assert Policy().decide(ask("operator", **headers)).refusal == refusal
    assert GUARDED.decide(ask("operator", OPERATOR, **headers)).refusal == refusal
    assert Policy().decide(ask("reader", **headers)).refusal is None


def test_a_page_whose_name_resolves_to_this_machine_changes_nothing() -> None:
    """Its origin is the request's own host then. A caller with a token is none: no browser sends one unasked."""
    rebound = {"origin": "http://evil.example:8080", "host": "evil.example:8080"}
    assert Policy().decide(ask("operator", **rebound)).refusal == Refusal.CROSS_SITE
    assert Policy(allow_unauthenticated=True).decide(ask("operator", **rebound)).refusal == Refusal.CROSS_SITE
    assert GUARDED.decide(ask("operator", OPERATOR, **rebound)).refusal is None


@pytest.mark.parametrize("address", ["127.0.0.1", "127.255.0.3", "::1", "::ffff:127.0.0.1", "localhost", "LocalHost"])
def test_these_are_this_machine(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "*", "128.0.0.1", "::ffff:10.0.0.1", "localhost.evil", "", "127"])
def test_these_are_not(address: str) -> None:
    assert not is_loopback(address)


def test_what_listens_to_others_is_told_with_what_is_open() -> None:
    assert list(exposures(Policy(), "127.0.0.1", "localhost")) == []
    [http] = exposures(Policy(), "0.0.0.0", "::1")
    assert "0.0.0.0 without tokens" in http
    assert "read everything; only this machine itself can change something" in http
    [http] = exposures(Policy(allow_unauthenticated=True), "::", "::1")
    assert "read everything and change everything" in http
    [data] = exposures(GUARDED, "0.0.0.0", "192.0.2.1")
    assert "the data plane listens on 192.0.2.1 and has no authentication" in data


def test_another_policy_holds_from_the_next_request_on() -> None:
    access = AccessControl()
    assert access.policy.decide(ask("operator")).refusal is None
    access.replace(GUARDED)
    assert access.policy.decide(ask("operator")).refusal == Refusal.NO_TOKEN


def test_nothing_that_is_printed_shows_a_token_or_its_digest() -> None:
    for shown in (repr(GUARDED), repr(TOKENS), str(TOKENS[0])):
        assert "alice" in shown or "grafana" in shown
        for token in TOKENS:
            assert repr(token.digest) not in shown
            assert token.digest.hex() not in shown
        assert READER not in shown
