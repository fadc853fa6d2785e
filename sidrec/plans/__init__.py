"""Sharding plans: searched, explained, kept as files, rated by cost models.

This room uses TorchRec's planner but no process group: hardware is described, so that plans can be made for machines
that are not at hand.
"""
