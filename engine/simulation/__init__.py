"""What a policy would have made of recorded traffic."""

from engine.simulation.simulate import OPTIMAL, HitRatios, simulate, simulated_policies
from engine.simulation.trace import Request, Trace, TraceError, parse_trace

__all__ = ["OPTIMAL", "HitRatios", "Request", "Trace", "TraceError", "parse_trace", "simulate", "simulated_policies"]
