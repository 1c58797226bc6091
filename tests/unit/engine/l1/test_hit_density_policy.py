"""Hit density: what is known of ages, and what follows from it."""

from __future__ import annotations

from engine.l1.policies.hit_density_policy import Policy
from tests.unit.engine.l1.policy_suite import PolicySuite


class TestHitDensity(PolicySuite):
    make = staticmethod(Policy)
    ghost_capacities = 4
