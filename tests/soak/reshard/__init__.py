"""Checkpoints saved by every plan at every number of ranks, loaded by every other: do losses go on?"""
