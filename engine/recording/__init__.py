"""The lookups of the live traffic, written as a trace that a simulation can replay."""
