"""Multi-layer perceptrons of encoders, decoders, experts and routers."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import nn


def mlp(widths: Sequence[int], last_activation: bool = False) -> nn.Sequential:
    """Linear layers from widths[0] to widths[-1] with ReLU between them, and behind the last one if asked for."""
    layers = list(_layers(widths))
    return nn.Sequential(*(layers if last_activation else layers[:-1]))


def _layers(widths: Sequence[int]) -> Iterator[nn.Module]:
    for inputs, outputs in pairwise(widths):
        yield nn.Linear(inputs, outputs)
        yield nn.ReLU()
