"""Broken files of every kind that the product reads, and what it says of them."""
