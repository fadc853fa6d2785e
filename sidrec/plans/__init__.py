"""Sharding plans: made, explained, kept as files, calibrated. Knows TorchRec's planner and no process group: worlds are
described, not joined, so that plans can be made for hardware that is not there."""
