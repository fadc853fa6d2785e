"""A compact encoder-decoder over SID tokens, after TIGER (arXiv 2305.05065), and beam search along the SIDs that exist.

B sequences or users, T items of a history, L levels, S = T L tokens, W beams, D width, K codes of a level, P positions.
In the trie: N items, S different SIDs, P beams of all users together, C children of all of them together. In the
search: C candidates of all users, M the most of one user, P = B W.
"""

from dataclasses import dataclass, field
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.generative.result import Size

BOS = 0  # the token that opens every target


@dataclass
class Decoding:
    """What a step-by-step decoding remembers. seen: per layer, its normalised inputs so far, float [B, W, steps, D]."""

    memory_BSD: Tensor
    padding_BS: Tensor
    position_BD: Tensor
    seen: list[Tensor] = field(default_factory=list)

    def follow(self, parent_BW: Tensor) -> None:
        """Beams continue those of these numbers."""
        rows_B1 = torch.arange(len(parent_BW))[:, None]
        self.seen = [seen[rows_B1, parent_BW] for seen in self.seen]


class SidTransformer(nn.Module):
    """The encoder reads the history's tokens, the decoder predicts the next item's, level by level.

    One vocabulary per level: level l's codes stand behind those of the levels before it, and one table serves input and
    output. The encoder looks back only, item by item, so that one pass trains the prediction of every item of a
    sequence; TIGER's own looks both ways and needs a pass per target. A target has the position of the last item of its
    history, which shows the decoder where that is. There is no token for the user.
    """

    offsets_L: Tensor

    def __init__(self, codebook_sizes: tuple[int, ...], size: Size, history: int, dropout: float) -> None:
        super().__init__()
        self.sizes = codebook_sizes
        offsets_L = torch.cumsum(torch.tensor([BOS + 1, *codebook_sizes]), dim=0)
        self.register_buffer("offsets_L", offsets_L[:-1], persistent=False)
        self.tokens = nn.Embedding(int(offsets_L[-1]), size.width)
        self.positions = nn.Embedding(history, size.width)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=size.width**-0.5)
        sizes = (size.width, size.heads, size.feedforward, dropout)
        layer = nn.TransformerEncoderLayer(*sizes, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, size.layers, nn.LayerNorm(size.width), enable_nested_tensor=False)
        self.decoder = nn.ModuleList(
            nn.TransformerDecoderLayer(*sizes, batch_first=True, norm_first=True) for _ in range(size.layers)
        )
        self.norm = nn.LayerNorm(size.width)
        self.dropout = nn.Dropout(dropout)

    @property
    def levels(self) -> int:
        """L."""
        return len(self.sizes)

    def forward(self, codes_BTL: Tensor, targets_BTL: Tensor, real_BT: Tensor) -> list[Tensor]:
        """Logits of the real positions, float [P, K] for every level.

        codes_BTL: int64 history. targets_BTL: int64, the item after each of them. real_BT: bool, the positions wanted;
        a position depends on no later one, so that padding at the end needs no mask.
        """
        batch, items, levels = codes_BTL.shape
        before_BTL = (targets_BTL + self.offsets_L)[..., :-1]
        inputs_BTL = torch.cat([before_BTL.new_full((batch, items, 1), BOS), before_BTL], dim=2)
        x_BTLD = self._embed(inputs_BTL) + self._scaled(self.positions.weight[:items])[:, None]
        x_BSD = self.dropout(x_BTLD.flatten(1, 2))
        memory_BSD, later_SS = self.encode(codes_BTL), _later_items(items, levels)
        place_S = torch.arange(items * levels)
        foreign_SS = later_SS | later_SS.T | (place_S > place_S[:, None])
        for layer in self.decoder:
            x_BSD = layer(x_BSD, memory_BSD, tgt_mask=foreign_SS, memory_mask=later_SS)
        hidden_PLD = self.norm(x_BSD.view(x_BTLD.shape)[real_BT])
        return [self._logits(hidden_PLD[:, level], level) for level in range(levels)]

    def encode(self, codes_BTL: Tensor) -> Tensor:
        """float [B, S, D]. codes_BTL: int64, oldest item first."""
        items, levels = codes_BTL.shape[1:]
        x_BTLD = self._embed(codes_BTL + self.offsets_L) + self._scaled(self.positions.weight[:items])[:, None]
        return self.encoder(self.dropout(x_BTLD.flatten(1, 2)), mask=_later_items(items, levels))

    def start(self, codes_BTL: Tensor, length_B: Tensor) -> Decoding:
        """Encodes histories, padded at the end, of at least one item each; `step` goes on from there."""
        padding_BT = torch.arange(codes_BTL.shape[1]) >= length_B[:, None]
        padding_BS = padding_BT.repeat_interleave(self.levels, dim=1)
        return Decoding(self.encode(codes_BTL), padding_BS, self._scaled(self.positions(length_B - 1)))

    def step(self, decoding: Decoding, code_BW: Tensor | None) -> Tensor:
        """Logits of the next level for every beam, float [B, W, K]; equal to those of `forward`, without dropout.

        code_BW: int64, the beams' last codes; None for the first step, which has one beam per sequence.
        """
        batch = len(decoding.position_BD)
        level = decoding.seen[0].shape[2] if decoding.seen else 0
        if code_BW is None:
            token_BW = torch.full((batch, 1), BOS)
            decoding.seen = [decoding.memory_BSD.new_zeros(batch, 1, 0, self.norm.normalized_shape[0])] * len(
                self.decoder
            )
        else:
            token_BW = code_BW + self.offsets_L[level - 1]
        x_BWD = self._embed(token_BW) + decoding.position_BD[:, None]
        for number, layer in enumerate(self.decoder):
            x_BWD = _step_of(cast(nn.TransformerDecoderLayer, layer), x_BWD, decoding, number)
        return self._logits(self.norm(x_BWD), level)

    def _embed(self, tokens: Tensor) -> Tensor:
        return self._scaled(self.tokens(tokens))

    def _scaled(self, vectors: Tensor) -> Tensor:
        return vectors * vectors.shape[-1] ** 0.5

    def _logits(self, hidden: Tensor, level: int) -> Tensor:
        first = int(self.offsets_L[level])
        return hidden @ self.tokens.weight[first : first + self.sizes[level]].T


def _step_of(layer: nn.TransformerDecoderLayer, x_BWD: Tensor, decoding: Decoding, number: int) -> Tensor:
    """What decoder layer `number` does to the newest tokens alone; the beams' earlier ones are remembered."""
    normed_BWD = layer.norm1(x_BWD)
    seen_BWsD = torch.cat([decoding.seen[number], normed_BWD[:, :, None]], dim=2)
    decoding.seen[number] = seen_BWsD
    keys_PsD = seen_BWsD.flatten(0, 1)
    own_P1D, _ = layer.self_attn(normed_BWD.flatten(0, 1)[:, None], keys_PsD, keys_PsD, need_weights=False)
    x_BWD = x_BWD + own_P1D.view(x_BWD.shape)
    memory_BSD = decoding.memory_BSD
    read_BWD, _ = layer.multihead_attn(
        layer.norm2(x_BWD), memory_BSD, memory_BSD, key_padding_mask=decoding.padding_BS, need_weights=False
    )
    x_BWD = x_BWD + read_BWD
    return x_BWD + layer.linear2(layer.activation(layer.linear1(layer.norm3(x_BWD))))


def _later_items(items: int, levels: int) -> Tensor:
    """bool [S, S]: whether a column's token belongs to a later item than the row's."""
    item_S = torch.arange(items).repeat_interleave(levels)
    return item_S > item_S[:, None]


# The prefix tree of the SIDs that exist, as sorted tables: looking up the children of all beams takes no loop.


@dataclass(frozen=True)
class Trie:
    """Nodes of depth d are numbered in the order of their prefixes; depth 0 is the root, depth L the S SIDs themselves.

    begin: for every depth below L, int64 [nodes + 1]: children of node n are nodes begin[n] to begin[n + 1] one deeper.
    code: for every depth from 1 on, int64 [nodes]: the last code of each node's prefix; code[d] belongs to depth d + 1.
    sid_N: int64, the SID number of every item. group_S: int64, how many items share each SID.
    """

    begin: tuple[Tensor, ...]
    code: tuple[Tensor, ...]
    sid_N: np.ndarray
    group_S: np.ndarray

    @classmethod
    def of(cls, codes_NL: np.ndarray) -> "Trie":
        """codes_NL: int64 SIDs of at least one item."""
        sids_SL, sid_N, group_S = np.unique(codes_NL, axis=0, return_inverse=True, return_counts=True)
        opens_S = np.zeros(len(sids_SL), dtype=bool)  # SIDs that open a node at the depth in hand
        opens_S[0] = True
        begin, code = [], []
        for depth in range(codes_NL.shape[1]):
            parents_S = np.cumsum(opens_S) - 1
            opens_S = opens_S | np.append(True, sids_SL[1:, depth] != sids_SL[:-1, depth])
            children = np.bincount(parents_S[opens_S])
            begin.append(torch.from_numpy(np.append(0, np.cumsum(children))))
            code.append(torch.from_numpy(sids_SL[opens_S, depth]))
        return cls(tuple(begin), tuple(code), sid_N.reshape(-1), group_S)

    @property
    def levels(self) -> int:
        """L."""
        return len(self.code)

    def children(self, depth: int, node_P: Tensor) -> tuple[Tensor, Tensor]:
        """All children of nodes at `depth`: whose they are (place in node_P, ascending) and which, int64 [C] each."""
        begin_P = self.begin[depth][node_P]
        count_P = self.begin[depth][node_P + 1] - begin_P
        owner_C = torch.repeat_interleave(count_P)
        first_P = torch.cumsum(count_P, dim=0) - count_P
        return owner_C, torch.arange(len(owner_C)) + (begin_P - first_P)[owner_C]


# Beam search along the trie.


class Found(NamedTuple):
    """sid_BW: int64 SID numbers of the trie, best first. score_BW: float, their log-probabilities; -inf where there
    are fewer SIDs than beams, and the SID means nothing."""

    sid_BW: Tensor
    score_BW: Tensor


@torch.no_grad()
def search(model: SidTransformer, trie: Trie, codes_BTL: Tensor, length_B: Tensor, beam: int) -> Found:
    """The SIDs that most probably come next; exact once `beam` is at least the number of different SIDs.

    A score is the sum over levels of the log-softmax over all K codes; those that lead to no SID are never entered.

    codes_BTL: int64 histories of at least one item, padded at the end. length_B: int64.
    """
    users = len(length_B)
    decoding = model.start(codes_BTL, length_B)
    node_BW, code_BW = torch.zeros(users, 1, dtype=torch.int64), None
    score_BW = torch.zeros(users, 1)
    for depth in range(trie.levels):
        logits_BWK = model.step(decoding, code_BW)
        next_PK = (functional.log_softmax(logits_BWK, dim=2) + score_BW[..., None]).flatten(0, 1)
        owner_C, child_C = trie.children(depth, node_BW.flatten())
        score_C = next_PK[owner_C, trie.code[depth][child_C]]
        user_C, beams = owner_C // node_BW.shape[1], node_BW.shape[1]
        place_C, most = _places(user_C, users)
        score_BM = score_C.new_full((users, most), -torch.inf)
        score_BM[user_C, place_C] = score_C
        candidate_BM = torch.zeros(users, most, dtype=torch.int64)
        candidate_BM[user_C, place_C] = torch.arange(len(owner_C))
        score_BW, top_BW = score_BM.topk(min(beam, most), dim=1)
        chosen_BW = candidate_BM.gather(1, top_BW)
        node_BW = child_C[chosen_BW]
        code_BW = trie.code[depth][node_BW]
        decoding.follow(owner_C[chosen_BW] % beams)
    return Found(node_BW, score_BW)


def _places(user_C: Tensor, users: int) -> tuple[Tensor, int]:
    """The place of each candidate among its user's, and how many the user with most has. user_C: ascending."""
    count_B = torch.bincount(user_C, minlength=users)
    first_B = torch.cumsum(count_B, dim=0) - count_B
    return torch.arange(len(user_C)) - first_B[user_C], int(count_B.max())
