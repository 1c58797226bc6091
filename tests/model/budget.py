"""How many examples a machine gets in each profile."""

from __future__ import annotations

import os

from hypothesis import settings

_DEEP_FACTOR = 20


def budget(examples: int, steps: int) -> settings:
    """`examples` runs of up to `steps` rules each; many times more in the `deep` profile."""
    deep = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
    return settings(max_examples=examples * (_DEEP_FACTOR if deep else 1), stateful_step_count=steps)
