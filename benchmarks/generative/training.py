"""Trains the transformer with early stopping.

B windows, T items of a history, L levels, K codes of a level, P targets of a batch, E events.
"""

import copy
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from benchmarks.generative.model import SidTransformer
from benchmarks.generative.result import SIZES, Settings
from benchmarks.generative.sequences import Windows
from sidrec.errors import TrainingError

LEAST = 1e-8  # sum of weights to divide by, where every weight is 0


@dataclass(frozen=True)
class Tokens:
    """codes_EL: int64 SID of every event's item. weights_EL: float32 weight of its tokens in the loss, or None: 1."""

    codes_EL: Tensor
    weights_EL: Tensor | None = None


@dataclass
class Journal:
    """Mean loss per token, in nats, of every epoch; `best` is the epoch, from 1, whose weights were kept."""

    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    best: int = 0


def token_loss(logits: list[Tensor], codes_PL: Tensor, weights_PL: Tensor | None) -> tuple[Tensor, Tensor]:
    """The sum of weight times cross-entropy over all tokens, and the sum of weights; their ratio is the loss.

    logits: float [P, K] for every level. weights_PL: ADC-SID's use of its router in generation (arXiv 2510.25622v3).
    """
    losses = [functional.cross_entropy(level, codes_PL[:, n], reduction="none") for n, level in enumerate(logits)]
    loss_PL = torch.stack(losses, dim=1)
    weights_PL = torch.ones_like(loss_PL) if weights_PL is None else weights_PL
    return (loss_PL * weights_PL).sum(), weights_PL.sum()


def train(
    codebook_sizes: tuple[int, ...], tokens: Tokens, training: Windows, validation: Windows, settings: Settings
) -> tuple[SidTransformer, Journal]:
    """Trains on `training`, keeps the weights of the epoch with the least loss on `validation`.

    The same arguments give the same bits with the same number of threads. Raises LearningError for a loss that is no
    number.
    """
    torch.manual_seed(settings.seed)
    random = np.random.default_rng(settings.seed)
    model = SidTransformer(codebook_sizes, SIZES[settings.size], settings.history, settings.dropout)
    optimizer = torch.optim.Adam(model.parameters(), settings.lr)
    journal, kept = Journal(), model.state_dict()
    with tqdm(total=settings.epochs * len(training), desc="train", unit=" sequences", disable=None) as bar:
        for epoch in range(1, settings.epochs + 1):
            model.train()
            losses, weights, done = 0.0, 0.0, (epoch - 1) * len(training)
            for window_B in training.batches(settings.batch_items, random):
                optimizer.param_groups[0]["lr"] = settings.lr * (1 - done / (settings.epochs * len(training)))
                loss, weight = _step(model, optimizer, tokens, training, window_B)
                losses, weights, done = losses + loss, weights + weight, done + len(window_B)
                bar.update(len(window_B))
            journal.train_loss.append(losses / max(weights, LEAST))
            journal.validation_loss.append(_validation_loss(model, tokens, validation, settings.batch_items))
            _check_finite(journal)
            bar.set_postfix(loss=f"{journal.train_loss[-1]:.3f}", validation=f"{journal.validation_loss[-1]:.3f}")
            if journal.validation_loss[-1] == min(journal.validation_loss):
                journal.best, kept = epoch, copy.deepcopy(model.state_dict())
            if epoch - journal.best >= settings.patience:
                break
    model.load_state_dict(kept)
    return model.eval(), journal


def _step(
    model: SidTransformer, optimizer: torch.optim.Optimizer, tokens: Tokens, windows: Windows, window_B: np.ndarray
) -> tuple[float, float]:
    loss, weight = _loss_of(model, tokens, windows, window_B)
    optimizer.zero_grad()
    (loss / weight.clamp(min=LEAST)).backward()
    optimizer.step()
    return loss.item(), weight.item()


def _check_finite(journal: Journal) -> None:
    for name, losses in (("training", journal.train_loss), ("validation", journal.validation_loss)):
        if not math.isfinite(losses[-1]):
            raise TrainingError(f"epoch {len(losses)}: expected a finite {name} loss, got {losses[-1]}; try less --lr")


@torch.no_grad()
def _validation_loss(model: SidTransformer, tokens: Tokens, windows: Windows, batch_items: int) -> float:
    model.eval()
    losses, weights = 0.0, 0.0
    for window_B in windows.batches(batch_items, np.random.default_rng(0)):
        loss, weight = _loss_of(model, tokens, windows, window_B)
        losses, weights = losses + loss.item(), weights + weight.item()
    return losses / max(weights, LEAST)


def _loss_of(model: SidTransformer, tokens: Tokens, windows: Windows, window_B: np.ndarray) -> tuple[Tensor, Tensor]:
    event_BT, real_BT = (torch.from_numpy(array) for array in windows.events(window_B))
    logits = model(tokens.codes_EL[event_BT[:, :-1]], tokens.codes_EL[event_BT[:, 1:]], real_BT)
    event_P = event_BT[:, 1:][real_BT]
    weights_PL = None if tokens.weights_EL is None else tokens.weights_EL[event_P]
    return token_loss(logits, tokens.codes_EL[event_P], weights_PL)
