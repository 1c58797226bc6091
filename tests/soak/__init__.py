"""A soak: fifty engines with churn against one server, while everything that operators and faults can do is done to it.

What is looked for: a byte that is not of the object that it was asked as, a request without an answer, a hit that was
no hit, and anything that is left behind. `python -m tests.soak --help`.
"""
