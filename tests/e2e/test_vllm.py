"""A fresh vLLM process loads what another one computed, and generates the same tokens as one without any cache."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.generate import Answers
from tests.e2e.model import VOCABULARY
from tests.support.server import Server, ServerProcess

pytestmark = [pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

Generate = Callable[..., Answers]

CHUNK = 256

_tokens = random.Random(2048)
LONG = [_tokens.randrange(3, VOCABULARY) for _ in range(6100)]
FORKED = [*LONG[:1100], *(_tokens.randrange(3, VOCABULARY) for _ in range(1000))]
"""Shares its first 1,100 tokens with the long prompt: four whole chunks. The long one is computed in several steps."""
PROMPTS = [LONG, FORKED]


def whole_chunks(tokens: int) -> int:
    return tokens // CHUNK * CHUNK


@pytest.fixture(scope="module")
def plain(generate: Generate) -> Answers:
    """The truth: vLLM without a connector."""
    return generate("no connector", PROMPTS)


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with Server("--chunk-size", str(CHUNK), l1_size_gb=1.0) as running:
        yield running


def connector(server: ServerProcess, mode: str | None) -> dict[str, Any]:
    """vLLM's configuration for the LMCache connector; without a mode it chooses by the device: the engine copies."""
    extra: dict[str, Any] = {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": server.port}
    if mode is not None:
        extra["lmcache.mp.mp_transfer_mode"] = mode
    return {"kv_connector": "LMCacheMPConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra}


@pytest.mark.parametrize("mode", [None, "lmcache_driven"], ids=["default", "lmcache_driven"])
def test_a_warm_run_hits_and_generates_the_same_tokens(
    server: ServerProcess, generate: Generate, plain: Answers, mode: str | None, say: Callable[[str], None]
) -> None:
    name = mode or "default"
    cold = generate(f"{name}, cold", PROMPTS, connector(server, mode))
    warm = generate(f"{name}, warm", PROMPTS, connector(server, mode))

    assert [answer.external_hits for answer in cold.answers] == [0, whole_chunks(1100)]
    assert [answer.external_hits for answer in warm.answers] == [whole_chunks(len(prompt)) for prompt in PROMPTS]
    for computed, first, second in zip(plain.answers, cold.answers, warm.answers, strict=True):
        assert first.tokens == computed.tokens
        assert second.tokens == computed.tokens
    times = [answers.answers[0].seconds for answers in (plain, cold, warm)]
    say(f"{name}: {len(LONG)} tokens, no connector {times[0]:.2f} s, cold {times[1]:.2f} s, warm {times[2]:.2f} s")
