"""Campaigns that take minutes to hours, and tests of them that take seconds: see `python -m tests.soak --help`."""
