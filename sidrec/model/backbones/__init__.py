"""Backbones: rankers fed with embeddings that are already looked up, TorchRec's own wherever it has the model."""
