"""The golden set: what version 0.1.0 computed, wrote and said, and tests that hold today's code against it.

    v0.1.0/artifacts/      files that 0.1.0 left: data, catalogs, runs with checkpoints, plan, bench, calibration
    v0.1.0/losses.json     losses of every step, metrics, names of a checkpoint's tensors, by recipe
    v0.1.0/learners.json   codes and their quality, by learner
    v0.1.0/commands.json   exit status, JSON on stdout, and files that each command leaves
    v0.1.0/said.json       words on stdout and stderr; the one file that a mere rewording may change
    v0.1.0/machine.json    where it was made: numbers are compared exactly on such a machine

Tests reach the product through `product.py` alone. `python -m tests.golden.make FOLDER` makes the set again and prints
what differs.
"""
