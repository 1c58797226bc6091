"""The unmodified LMCache client against a real kvkeep server."""
