"""Checks before anything is allocated: capacity of the machines, soundness of the data, equal ranks."""
