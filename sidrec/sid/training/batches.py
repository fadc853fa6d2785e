"""Batches for the training of a tokenizer: epochs over all items in bounded memory, shared out to replicas.

Shapes: N items, V vector width, E behaviour width, S steps, W steps of a window, A anchors of this replica, B items of
its batch, P pairs.
"""

from collections.abc import Iterator
from itertools import repeat

import numpy as np
import torch
from torch import Tensor

from sidrec.config.learner_parts import Pairs
from sidrec.schema import ContractError
from sidrec.sid.networks.network import ItemBatch
from sidrec.sid.networks.token_weights import norm_range, norms, scaled
from sidrec.sid.replicas import Replicas

MEMORY = 2 << 30  # bytes of vectors that are assumed to fit in RAM
WINDOW = 256 << 20  # bytes of vectors read at a time when they do not fit
BLOCK = 4096  # neighbouring rows that a streamed epoch keeps within one window
EVERY_ITEM = Pairs()


class Batches:
    """`steps` batches per epoch, all of one size: the epoch's first items fill up the last batch.

    Vectors of at most `memory` bytes, behaviour included, are shuffled freely; a memory map of that size stays in RAM
    after the first epoch. Larger ones are read in windows of about `window` bytes (see `epoch_order`); within a window,
    rows and their partners are read in the file's order. The order of an epoch takes 16 bytes per item, 24 at its peak.

    With pairs, the first half of a batch are anchors and the second half one partner of each. By default every item is
    an anchor once per epoch. With `draw: pairs`, an epoch has as many anchors, but they and their partners are pairs
    drawn at random, as the papers do, which never train on items without a partner.
    """

    def __init__(
        self,
        vectors_NV: np.ndarray,
        batch_size: int,
        seed: int,
        replicas: Replicas,
        pairs_P2: np.ndarray | None = None,
        behavior_NE: np.ndarray | None = None,
        clip_quantile: float = 0.0,
        drawing: Pairs = EVERY_ITEM,
        *,
        memory: int = MEMORY,
        window: int = WINDOW,
        block: int = BLOCK,
    ) -> None:
        """pairs_P2, behavior_NE: None if no loss needs them. clip_quantile: see `norm_range`. block: see `epoch_order`.
        drawing: how pairs are drawn.

        Raises ContractError when the pairs are not row numbers, or a batch is too small for all replicas.
        """
        items, share = len(vectors_NV), replicas.size * (1 if pairs_P2 is None else 2)
        if batch_size < share:
            raise ContractError("training.batch_size", f"at least {share} for {replicas.size} processes", batch_size)
        self._anchors = min(batch_size // share, -(-items // replicas.size))
        self.steps = -(-items // (self._anchors * replicas.size))
        self._size = self._anchors * (1 if pairs_P2 is None else 2)
        self._seed, self._replicas = seed, replicas
        held = vectors_NV.nbytes + (0 if behavior_NE is None else behavior_NE.nbytes)
        self._resident = held <= memory
        self._vectors_NV = vectors_NV
        self._window = items if self._resident else max(window // (held // items), 1)
        self._block = block
        self._partners: Partners | None = None
        self._drawn: DrawnPairs | None = None
        if pairs_P2 is not None:
            check_pairs(pairs_P2, items)
            if drawing.draw == "pairs":
                self._drawn = DrawnPairs(pairs_P2, drawing.directed)
            else:
                self._partners = Partners(pairs_P2, items, drawing.directed)
        self._behavior_NE = behavior_NE
        self._scaled_norm_N = None if behavior_NE is None else _scaled_norms(behavior_NE, clip_quantile)

    def epoch(self, number: int) -> Iterator[ItemBatch]:
        """This replica's batches of an epoch, a function of the seed and the epoch's number."""
        order_SA = self._order(number)
        generator = np.random.default_rng([self._seed, number, 1])
        steps = 1 if self._resident else max(self._window // self._size, 1)
        for start in range(0, self.steps, steps):
            yield from self._batches(order_SA[start : start + steps], generator)

    def sample(self, items: int) -> Tensor:
        """float32 vectors of that many items drawn at random; of all items if there are fewer."""
        every = len(self._vectors_NV)
        chosen = np.random.default_rng(self._seed).choice(every, min(items, every), replace=False)
        return self._tensor(self._vectors_NV, np.sort(chosen))

    def _order(self, number: int) -> np.ndarray:
        """int64 [S, A]: the anchors of every step, as rows; with `draw: pairs`, the numbers of their pairs."""
        shape = (self.steps, self._replicas.size, self._anchors)
        if self._drawn is not None:
            numbers = np.random.default_rng([self._seed, number]).integers(self._drawn.count, size=shape)
            return numbers[:, self._replicas.rank]
        order_N = epoch_order(len(self._vectors_NV), self._window, self._seed, number, self._block)
        return np.resize(order_N, shape)[:, self._replicas.rank]

    def _batches(self, order_WA: np.ndarray, generator: np.random.Generator) -> Iterator[ItemBatch]:
        """The batches of a window of steps."""
        rows_WB, known_WA = self._with_partners(order_WA, generator)
        behavior: Iterator[Tensor | None] = repeat(None, len(rows_WB))
        if self._behavior_NE is not None:
            behavior = self._read(self._behavior_NE, rows_WB)
        vectors = self._read(self._vectors_NV, rows_WB)
        for step, (vectors_BV, behavior_BE) in enumerate(zip(vectors, behavior, strict=True)):
            rows_B, device = torch.from_numpy(rows_WB[step]), self._replicas.device
            norm_B = None if self._scaled_norm_N is None else self._scaled_norm_N[rows_B].to(device)
            partners = None if known_WA is None else known_WA.shape[1]
            known_A = None if known_WA is None else torch.from_numpy(known_WA[step]).to(device)
            yield ItemBatch(rows_B.to(device), vectors_BV, partners, known_A, behavior_BE, norm_B)

    def _with_partners(
        self, order_WA: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray | None]:
        if self._drawn is not None:
            return np.concatenate(self._drawn.rows(order_WA), axis=1), np.ones(order_WA.shape, dtype=bool)
        if self._partners is None:
            return order_WA, None
        steps, anchors = order_WA.shape
        # Every replica draws the numbers of all replicas and uses its own, so that the generators stay equal.
        chances = generator.random((steps, self._replicas.size, anchors))
        partner_WA, known_WA = self._partners.draw(order_WA, chances[:, self._replicas.rank])
        return np.concatenate([order_WA, partner_WA], axis=1), known_WA

    def _read(self, array_NV: np.ndarray, rows_WB: np.ndarray) -> Iterator[Tensor]:
        """Rows [B, ..] of every step. Vectors larger than RAM: reads the rows of all steps at once, in file order."""
        if self._resident:
            yield from (self._tensor(array_NV, rows_B) for rows_B in rows_WB)
            return
        rows, places_WB = np.unique(rows_WB, return_inverse=True)
        window = self._tensor(array_NV, rows)
        yield from (window[torch.from_numpy(places_B)] for places_B in places_WB.reshape(rows_WB.shape))

    def _tensor(self, array_NV: np.ndarray, rows_B: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(array_NV[rows_B], dtype=np.float32)).to(self._replicas.device)


def _scaled_norms(behavior_NE: np.ndarray, clip_quantile: float) -> Tensor:
    norms_N = norms(behavior_NE)
    return scaled(torch.from_numpy(norms_N), *norm_range(norms_N, clip_quantile)).float()


def epoch_order(items: int, window: int, seed: int, epoch: int, block: int = BLOCK) -> np.ndarray:
    """int64 [N]: all row numbers, in another order every epoch.

    window: rows that the reader can hold. If it holds all, every order is equally likely. Otherwise blocks of `block`
    neighbouring rows are shuffled, and then the rows within each window of blocks.
    """
    generator = np.random.default_rng([seed, epoch])
    if items <= window:
        return generator.permutation(items)
    starts = generator.permutation(np.arange(0, items, block))
    order = np.concatenate([np.arange(start, min(start + block, items)) for start in starts])
    rows = max(window // block, 1) * block
    for start in range(0, items, rows):
        generator.shuffle(order[start : start + rows])
    return order


def check_pairs(pairs_P2: np.ndarray, items: int) -> None:
    """Raises ContractError when the pairs are not integer row numbers [P >= 1, 2]."""
    if pairs_P2.ndim != 2 or pairs_P2.shape[1] != 2 or not len(pairs_P2) or pairs_P2.dtype.kind != "i":
        raise ContractError("item pairs", "int [pairs, 2], at least one", f"{pairs_P2.dtype} {pairs_P2.shape}")
    if pairs_P2.min() < 0 or pairs_P2.max() >= items:
        extremes = f"{pairs_P2.min()} to {pairs_P2.max()}"
        raise ContractError("item pairs", f"row numbers in [0, {items})", extremes)


class DrawnPairs:
    """Pairs by number. A pair (a, b) is (a, b), and unless directed also (b, a); a pair given twice counts twice."""

    def __init__(self, pairs_P2: np.ndarray, directed: bool) -> None:
        self._pairs_P2 = pairs_P2
        self.count = len(pairs_P2) * (1 if directed else 2)

    def rows(self, number_A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the anchors and of their partners, for pairs numbered in [0, count)."""
        pair_A, backwards_A = number_A % len(self._pairs_P2), number_A // len(self._pairs_P2)
        return self._pairs_P2[pair_A, backwards_A], self._pairs_P2[pair_A, 1 - backwards_A]


class Partners:
    """Partners of every item. A pair (a, b) makes b a partner of a, and unless directed a of b.

    A pair given twice counts twice.
    """

    def __init__(self, pairs_P2: np.ndarray, items: int, directed: bool = False) -> None:
        """pairs_P2: see `check_pairs`."""
        anchors, others = pairs_P2.T, pairs_P2.T[::-1]
        if directed:
            anchors, others = anchors[:1], others[:1]
        by_anchor = np.argsort(anchors.ravel(), kind="stable")
        self._others = others.ravel()[by_anchor]
        self._count_N = np.bincount(anchors.ravel(), minlength=items)
        self._start_N = np.cumsum(self._count_N) - self._count_N

    def draw(self, rows_A: np.ndarray, chance_A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The row of a partner for every anchor, its own row where it has none; and bool [A], whether it has one.

        chance_A: uniform on [0, 1), picks one of an anchor's partners.
        """
        count_A = self._count_N[rows_A]
        place_A = self._start_N[rows_A] + (chance_A * count_A).astype(np.int64)
        known_A = count_A > 0
        return np.where(known_A, self._others[np.where(known_A, place_A, 0)], rows_A), known_A
