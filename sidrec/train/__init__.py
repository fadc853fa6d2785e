"""Training: optimizers, loop, metrics, checkpoint, run directory."""
