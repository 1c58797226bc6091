"""Hypothesis state machines for the cache and the engine, with the data in the oracle."""
