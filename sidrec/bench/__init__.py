"""Sharding plans measured on the ranks at hand: the bench, its result, its page, and calibrations from it."""
