"""Checkpoints: what a run has learned, on disk, whole or not at all, for any plan and any number of ranks."""
