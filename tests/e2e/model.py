"""A small Llama with random weights: made in a second, downloaded from nowhere, and its KV matters all the same."""

from __future__ import annotations

from pathlib import Path

VOCABULARY = 32_000


def make(folder: Path) -> None:
    """Save the model; the weights come from a fixed seed, so that every run computes the same tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(20_260)
    shape = LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=8192,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
