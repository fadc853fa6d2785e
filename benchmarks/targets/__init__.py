"""Targets that sidrec has set itself, and where it stands: one entry per target, one page."""
