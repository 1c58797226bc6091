"""Eviction policies, one module each, found by the name of its file."""
