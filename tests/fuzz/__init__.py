"""Input that nobody means well with: against a live server, and against everything that reads what others wrote."""
