"""Losses that plug into any gradient-trained learner."""
