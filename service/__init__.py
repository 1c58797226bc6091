"""kvkeep's service: the HTTP API for operators, the configuration, and the process around the engine."""

__version__ = "0.1.0"
