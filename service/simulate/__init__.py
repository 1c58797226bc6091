"""`kvkeep simulate`: recorded requests against the eviction policies, as tables, JSON and a picture."""
