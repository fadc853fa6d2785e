"""SASRec: causal self-attention that predicts each user's next item (Kang & McAuley 2018, arXiv 1808.09781).

B sequences, T positions, D width, H heads, M items.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

INIT_STD = 0.02


class SelfAttention(nn.Module):
    """Multi-head attention in which a position sees itself and what came before."""

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


class Block(nn.Module):
    """Attention and a point-wise network as wide as the input, each on normalised input and added to it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.network_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.network = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD)))
        return x_BTD + self.dropout(self.network(self.network_norm(x_BTD)))


class SasRec(nn.Module):
    """Items in, one hidden vector per position out; its inner product with an item's vector is the item's score.

    One table serves input and output, so an item's vector is a row of `items`, which nothing normalises: its length is
    free to follow the item's frequency. Row M is the start of a sequence, which makes the first item predictable too.
    Sequences are padded at the end; as attention is causal, padding needs no mask.
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
        """Row of `items` that opens a sequence."""
        return self.items.num_embeddings - 1

    def forward(self, items_BT: Tensor) -> Tensor:
        """items_BT: int64 rows of `items`, T at most `length`. Returns float [B, T, D]."""
        x_BTD = self.items(items_BT) * self.items.embedding_dim**0.5 + self.positions[: items_BT.shape[1]]
        return self.norm(self.blocks(self.dropout(x_BTD)))
