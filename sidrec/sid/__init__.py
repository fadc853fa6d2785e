"""Semantic ids: item vectors in, codes out. Knows nothing of TorchRec, ranks or logs."""
