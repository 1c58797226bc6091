"""A real vLLM on a CPU, whose prompts a real kvkeep remembers."""
