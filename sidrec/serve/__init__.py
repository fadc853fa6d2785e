"""Scores from an exported bundle. Needs numpy and onnxruntime alone, no part of training."""
