"""SASRec: causal self-attention that predicts each user's next item (Kang & McAuley 2018, arXiv 1808.09781).

It is trained with a sampled softmax over uniform negatives.

Shapes: B sequences, T positions, P real positions of a batch, D width, H heads, W windows, S negatives, M items, E
events, U users.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .command import rows_bar
from .item_pairs import Sequences

if TYPE_CHECKING:
    from .behavior import SasRecSettings

INIT_STD = 0.02


def train_sasrec(sequences: Sequences, settings: "SasRecSettings", what: str) -> tuple["SasRec", list[float]]:
    """Trains on all sequences. Returns the model and the mean loss of every epoch. what: names the progress bar.

    Deterministic. torch's global random state and number of threads are restored.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            return _train(sequences, settings, what)
    finally:
        torch.set_num_threads(threads)


def _train(sequences: Sequences, settings: "SasRecSettings", what: str) -> tuple["SasRec", list[float]]:
    items, events = len(sequences.item_ids_M), len(sequences.items_E)
    model = SasRec(items, settings.width, settings.blocks, settings.heads, settings.length, settings.dropout)
    optimizer = torch.optim.Adam(model.parameters(), settings.lr)
    windows = Windows.of(sequences, settings.length)
    random = np.random.default_rng(settings.seed)
    losses: list[float] = []
    done = 0
    with rows_bar(what, settings.epochs * events) as bar:
        for _ in range(settings.epochs):
            total = 0.0
            for window_B in windows.batches(settings.batch_events, random):
                optimizer.param_groups[0]["lr"] = settings.lr * (1 - done / (settings.epochs * events))
                inputs_BT, real_BT, targets_P = windows.inputs_and_targets(window_B, model.start)
                loss = sampled_softmax(
                    model(inputs_BT)[real_BT], targets_P, _negatives(items, settings.negatives, random), model, items
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(targets_P)
                done += len(targets_P)
                bar.update(len(targets_P))
            losses.append(total / events)
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
    return model.eval(), losses


def _negatives(items: int, wanted: int, random: np.random.Generator) -> Tensor:
    return torch.from_numpy(np.arange(items) if items <= wanted else random.integers(items, size=wanted))


def sampled_softmax(hidden_PD: Tensor, targets_P: Tensor, negatives_S: Tensor, model: "SasRec", items: int) -> Tensor:
    """Mean cross-entropy of the targets against shared uniform negatives, each weighted M / S.

    A negative that equals the position's target is masked. With every item once as a negative, this is the exact
    softmax over M items.
    """
    own_P = (hidden_PD * model.items(targets_P)).sum(dim=1, keepdim=True)
    others_PS = hidden_PD @ model.items(negatives_S).T + math.log(items / len(negatives_S))
    others_PS = others_PS.masked_fill(targets_P[:, None] == negatives_S, -torch.inf)
    return functional.cross_entropy(torch.cat([own_P, others_PS], dim=1), torch.zeros_like(targets_P))


@dataclass(frozen=True)
class Windows:
    """Windows of sequences. The targets of window w are items_E[begin_W[w] : begin_W[w] + length_W[w]].

    The first input of a window is the event before it, or the start token for a user's first window (opens_W).
    """

    items_E: np.ndarray
    begin_W: np.ndarray
    length_W: np.ndarray
    opens_W: np.ndarray

    @classmethod
    def of(cls, sequences: Sequences, length: int) -> "Windows":
        lengths_U = sequences.lengths()
        windows_U = -(-lengths_U // length)
        user_W = np.repeat(np.arange(sequences.users), windows_U)
        place_W = np.arange(len(user_W)) - np.repeat(np.cumsum(windows_U) - windows_U, windows_U)
        left_W = lengths_U[user_W] - place_W * length
        begin_W = sequences.offsets[user_W] + place_W * length
        return cls(sequences.items_E, begin_W, np.minimum(left_W, length), place_W == 0)

    def batches(self, positions: int, random: np.random.Generator) -> Iterator[np.ndarray]:
        """Yields window numbers: random batches of similar lengths, at most `positions` positions with padding."""
        by_length_W = np.lexsort((random.random(len(self.length_W)), -self.length_W))
        cuts = [0]
        while cuts[-1] < len(by_length_W):
            cuts.append(cuts[-1] + max(1, positions // int(self.length_W[by_length_W[cuts[-1]]])))
        for number in random.permutation(len(cuts) - 1):
            yield by_length_W[cuts[number] : cuts[number + 1]]

    def inputs_and_targets(self, window_B: np.ndarray, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs int64 [B, T], mask of real positions bool [B, T], and targets of these int64 [P]."""
        length_B = self.length_W[window_B]
        step_T = np.arange(length_B.max())
        real_BT = step_T < length_B[:, None]
        place_BT = np.where(real_BT, self.begin_W[window_B][:, None] + step_T, 0)
        inputs_BT = np.where(real_BT, self.items_E[place_BT - 1], start)
        inputs_BT[self.opens_W[window_B], 0] = start
        targets_P = self.items_E[place_BT[real_BT]]
        return torch.from_numpy(inputs_BT), torch.from_numpy(real_BT), torch.from_numpy(targets_P)


class SasRec(nn.Module):
    """Maps items to one hidden vector per position. Its inner product with an item's vector is the item's score.

    Input and output share the table `items`. Its rows are not normalised, so the length of an item's vector can follow
    the item's frequency. Row M is the start token, from which the first item is predicted. Sequences are padded at the
    end; as attention is causal, padding needs no mask.
    """

    def __init__(self, items: int, width: int, blocks: int, heads: int, length: int, dropout: float) -> None:
        super().__init__()
        self.items = nn.Embedding(items + 1, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        nn.init.normal_(self.items.weight, std=INIT_STD)
        nn.init.normal_(self.positions, std=INIT_STD)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)

    @property
    def start(self) -> int:
        """Row of `items` with the start token."""
        return self.items.num_embeddings - 1

    def forward(self, items_BT: Tensor) -> Tensor:
        """items_BT: int64 rows of `items`, T at most `length`. Returns float [B, T, D]."""
        x_BTD = self.items(items_BT) * self.items.embedding_dim**0.5 + self.positions[: items_BT.shape[1]]
        return self.norm(self.blocks(self.dropout(x_BTD)))


class Block(nn.Module):
    """Attention, then a point-wise network, each with layer norm before it and a residual connection."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.network_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.network = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD)))
        return x_BTD + self.dropout(self.network(self.network_norm(x_BTD)))


class SelfAttention(nn.Module):
    """Causal multi-head attention: a position sees itself and earlier ones."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        batch, length, width = x_BTD.shape
        parts = self.query_key_value(x_BTD).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed_BHTd = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed_BHTd.transpose(1, 2).reshape(batch, length, width))


@torch.no_grad()
def item_scores(model: SasRec, had: list[np.ndarray], length: int) -> np.ndarray:
    """float32 [B, M]: scores of all items, from each user's latest events."""
    recent = [np.append(model.start, items)[-length:] for items in had]
    inputs_BT = np.full((len(recent), max(map(len, recent))), model.start)
    for row, items in zip(inputs_BT, recent, strict=True):
        row[: len(items)] = items
    last_B = torch.tensor([len(items) - 1 for items in recent])
    hidden_BD = model(torch.from_numpy(inputs_BT))[torch.arange(len(recent)), last_B]
    return np.asarray((hidden_BD @ model.items.weight[: model.start].T).numpy())
