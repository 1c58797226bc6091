"""What several suites share: real server processes, deadlines, shared-memory housekeeping."""
