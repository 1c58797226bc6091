"""L2: adapters for storage, one module each, found by the name of its file."""
