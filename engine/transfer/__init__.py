"""Moving KV bytes between the arena and the engines' KV caches."""
