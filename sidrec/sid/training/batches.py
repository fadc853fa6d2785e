"""Batches of a training: epochs over all items, in bounded memory, each replica its share of every batch.

Shapes: N items, V vector width, S steps, A anchors of this replica, B items of its batch.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sidrec.schema import ContractError
from sidrec.sid.networks.behavior_norm import norm_range, norms, scaled
from sidrec.sid.networks.network import ItemBatch
from sidrec.sid.replicas import Replicas
from sidrec.sid.training.order import epoch_order
from sidrec.sid.training.partners import Partners

MEMORY = 2 << 30  # bytes of vectors held in RAM at most
WINDOW = 256 << 20  # bytes of vectors read at a time when all do not fit


class Batches:
    """`steps` batches per epoch, all of one size: the last one is filled up with the epoch's first items.

    Vectors of at most MEMORY bytes are held in RAM and shuffled freely. Larger ones are read in windows of about WINDOW
    bytes, see `epoch_order`; beside the vectors, the order of an epoch takes 16 bytes per item.

    With pairs, half a batch are anchors and the other half a partner of each. The papers draw pairs, so that items in
    no pair are never seen; here the anchors are every item once per epoch, so that those are learned as well.
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
    ) -> None:
        """pairs_P2, behavior_NE: only where batches shall carry them. clip_quantile: of the scaled behaviour norms.

        Raises ContractError when the pairs are not row numbers, or the batch does not give every replica an anchor.
        """
        items, share = len(vectors_NV), replicas.size * (1 if pairs_P2 is None else 2)
        if batch_size < share:
            raise ContractError("training.batch_size", f"at least {share} for {replicas.size} processes", batch_size)
        self._anchors = min(batch_size // share, -(-items // replicas.size))
        self.steps = -(-items // (self._anchors * replicas.size))
        self._seed, self._replicas = seed, replicas
        self._resident = vectors_NV.nbytes <= MEMORY
        self._vectors_NV = np.ascontiguousarray(vectors_NV) if self._resident else vectors_NV
        self._window = items if self._resident else max(WINDOW // (vectors_NV.nbytes // items), 1)
        self._partners = None if pairs_P2 is None else Partners(pairs_P2, items)
        self._behavior_NE = behavior_NE
        self._scaled_norm_N = None if behavior_NE is None else _scaled_norms(behavior_NE, clip_quantile)

    def epoch(self, number: int) -> Iterator[ItemBatch]:
        """This replica's batches of an epoch; a function of the seed and the number."""
        order_N = epoch_order(len(self._vectors_NV), self._window, self._seed, number)
        shape = (self.steps, self._replicas.size, self._anchors)
        rows_SA = np.resize(order_N, shape)[:, self._replicas.rank]
        generator = np.random.default_rng([self._seed, number, 1])
        for rows_A, vectors_AV in zip(rows_SA, self._read(rows_SA), strict=True):
            yield self._with_behavior(self._with_partners(rows_A, vectors_AV, generator))

    def sample(self, items: int) -> Tensor:
        """Vectors of so many items drawn at random, of all if there are fewer."""
        every = len(self._vectors_NV)
        chosen = np.random.default_rng(self._seed).choice(every, min(items, every), replace=False)
        return self._vectors(np.sort(chosen))

    def _read(self, rows_SA: np.ndarray) -> Iterator[Tensor]:
        """Vectors of every step; where they are not resident, of a window of steps at a time, in the file's order."""
        if self._resident:
            yield from (self._vectors(rows_A) for rows_A in rows_SA)
            return
        steps = max(self._window // rows_SA.shape[1], 1)
        for start in range(0, len(rows_SA), steps):
            rows, places = np.unique(rows_SA[start : start + steps], return_inverse=True)
            window = self._vectors(rows)
            yield from (window[torch.from_numpy(places_A)] for places_A in places.reshape(-1, rows_SA.shape[1]))

    def _vectors(self, rows_B: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(self._vectors_NV[rows_B], dtype=np.float32)).to(self._replicas.device)

    def _with_partners(self, rows_A: np.ndarray, vectors_AV: Tensor, generator: np.random.Generator) -> ItemBatch:
        device = self._replicas.device
        if self._partners is None:
            return ItemBatch(torch.from_numpy(rows_A).to(device), vectors_AV)
        chances = generator.random((self._replicas.size, self._anchors))  # all replicas draw alike, each takes its part
        partner_A, known_A = self._partners.draw(rows_A, chances[self._replicas.rank])
        rows_B = torch.from_numpy(np.concatenate([rows_A, partner_A])).to(device)
        vectors_BV = torch.cat([vectors_AV, self._vectors(partner_A)])
        return ItemBatch(rows_B, vectors_BV, len(rows_A), torch.from_numpy(known_A).to(device))

    def _with_behavior(self, batch: ItemBatch) -> ItemBatch:
        if self._behavior_NE is None or self._scaled_norm_N is None:
            return batch
        rows_B, device = batch.rows_B.cpu(), self._replicas.device
        behavior_BE = torch.from_numpy(np.asarray(self._behavior_NE[rows_B.numpy()], dtype=np.float32))
        return replace(batch, behavior_BE=behavior_BE.to(device), scaled_norm_B=self._scaled_norm_N[rows_B].to(device))


def _scaled_norms(behavior_NE: np.ndarray, clip_quantile: float) -> Tensor:
    norms_N = norms(behavior_NE)
    return scaled(torch.from_numpy(norms_N), *norm_range(norms_N, clip_quantile)).float()
