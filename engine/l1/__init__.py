"""L1: the shared-memory tier."""
