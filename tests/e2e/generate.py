"""One vLLM process: load the model, answer every prompt, write what it cost and what was found in the cache.

``python -m tests.e2e.generate JOB`` with a JSON file written by ``Job.save``; the answers replace it.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

NEW_TOKENS = 32


@dataclass
class Job:
    """What to run: ``connector`` is vLLM's kv_transfer_config, or None for a run that knows no cache server."""

    model: str
    prompts: list[list[int]]
    connector: dict[str, Any] | None

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @staticmethod
    def load(path: Path) -> Job:
        return Job(**json.loads(path.read_text()))


@dataclass
class Answer:
    """One prompt's generated tokens, its wall time, and how many of its tokens came from outside the engine."""

    tokens: list[int]
    seconds: float
    external_hits: int


@dataclass
class Answers:
    """All of a process, in the order of the prompts."""

    answers: list[Answer] = field(default_factory=list)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @staticmethod
    def load(path: Path) -> Answers:
        return Answers([Answer(**answer) for answer in json.loads(path.read_text())["answers"]])


def run(job: Job) -> Answers:
    """Answer the prompts one after the other; each is computed alone, so its time is its own."""
    from vllm import LLM, SamplingParams

    options: dict[str, Any] = {} if job.connector is None else {"kv_transfer_config": job.connector}
    engine = LLM(
        job.model,
        # With random weights in bf16 a near tie can flip a token between a computed and a loaded prefix.
        dtype="float32",
        skip_tokenizer_init=True,
        enforce_eager=True,
        # The engine's own prefix cache would hide the external one.
        enable_prefix_caching=False,
        max_model_len=8192,
        disable_log_stats=False,
        **options,
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
    # The first request pays for what is set up once; it is too short to fill a chunk.
    engine.generate({"prompt_token_ids": [1, 2, 3, 4]}, sampling, use_tqdm=False)
    return Answers([_answer(engine, sampling, prompt) for prompt in job.prompts])


def _answer(engine: Any, sampling: Any, prompt: list[int]) -> Answer:
    hits, start = _external_hits(engine), time.perf_counter()
    output = engine.generate({"prompt_token_ids": prompt}, sampling, use_tqdm=False)[0]
    seconds = time.perf_counter() - start
    return Answer(list(output.outputs[0].token_ids), seconds, _external_hits(engine) - hits)


def _external_hits(engine: Any) -> int:
    """vLLM's own count of prompt tokens that its connector found."""
    return sum(int(m.value) for m in engine.get_metrics() if m.name == "vllm:external_prefix_cache_hits")


if __name__ == "__main__":
    file = Path(sys.argv[1])
    run(Job.load(file)).save(file)
