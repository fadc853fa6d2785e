"""Tokenizers whose network is trained by gradient: RQ-VAE and its variants, behind the contract of every tokenizer.

`GradientTokenizer` serves them all. The learner's section decides on the network (NETWORKS) and on the losses
(`sidrec.sid.training.objectives`).

Shapes: N items, V vector width, L levels, K codes of the last level, C rows of a chunk.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from sidrec.config.learners import (
    AdaSidConfig,
    AdcSidConfig,
    DasLiteConfig,
    GradientLearnerConfig,
    LetterConfig,
    MmRqVaeConfig,
    MultiVqConfig,
    QuaSidConfig,
    RqVaeConfig,
)
from sidrec.io.progress import Bar
from sidrec.schema import BEHAVIOR, ContractError
from sidrec.sid.networks.adc_sid import AdcSid
from sidrec.sid.networks.mm_rqvae import MmRqVae
from sidrec.sid.networks.network import Network
from sidrec.sid.networks.rqvae import MultiVq, RqVae
from sidrec.sid.replicas import Replicas, current_replicas
from sidrec.sid.tokenizer import Encoded, LearnerInputs, SideInformation, Tokenizer, check_width
from sidrec.sid.training.batches import Batches
from sidrec.sid.training.objectives import ScheduledLoss, clip_quantile, loss_inputs, scheduled_losses
from sidrec.sid.training.trainer import Checkpoint, CodeUsage, Trainer, check_utilisation, identity_of

NETWORKS: dict[type, type[Network]] = {
    **dict.fromkeys((RqVaeConfig, LetterConfig, DasLiteConfig, QuaSidConfig, AdaSidConfig), RqVae),
    MultiVqConfig: MultiVq,
    MmRqVaeConfig: MmRqVae,
    AdcSidConfig: AdcSid,
}
"""The network of every learner, by the learner's section. Built as NETWORK(section, columns)."""

SAMPLE = 256  # items per code that the first check for a collapse encodes
CHUNK = 1024  # rows of an encoded block; all blocks have this shape, as the last bits of a matrix product depend on it
Columns = tuple[tuple[str, int], ...]


class GradientTokenizer(Tokenizer):
    """A trained network. Encoding runs on the CPU, so that codes do not depend on where the network was trained."""

    several_processes = True

    def __init__(self, network: Network, columns: Columns, journal: tuple[dict[str, object], ...] = ()) -> None:
        """columns: (name, width) of the vector columns that the network takes."""
        self._network = network.cpu().eval()
        self._columns = columns
        self._journal = journal

    @classmethod
    def inputs(cls, config: GradientLearnerConfig) -> LearnerInputs:
        """What the network and the losses of the section need."""
        network, batch = NETWORKS[type(config)], loss_inputs(*config.losses, *config.further_losses)
        return LearnerInputs("pairs" in batch, BEHAVIOR in batch, network.unscaled_columns, network.unknown_behavior)

    @classmethod
    def fit(
        cls,
        vectors_NV: np.ndarray,
        config: GradientLearnerConfig,
        seed: int,
        side: SideInformation,
        work: Path | None = None,
    ) -> Self:
        """See `Tokenizer.fit`. In a joined process group all processes call it with the same arguments.

        They train together, on their GPUs where they have some, and each gets the same tokenizer.
        """
        columns = _columns(vectors_NV, side)
        replicas = current_replicas()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = build_network(config, columns)
            losses = scheduled_losses(config, network, side, len(vectors_NV))
            _check_items(vectors_NV, network)
            network.measure(vectors_NV)
            trainer = Trainer(
                network,
                losses,
                _batches(vectors_NV, config, losses, seed, side, replicas),
                config.training,
                seed,
                replicas,
                _checkpoint(work, config, seed, replicas, vectors_NV, side),
            )
            trainer.run()
        tokenizer = cls(network, columns, tuple(trainer.journal))
        _check_collapse(tokenizer, vectors_NV, config.training.least_utilisation, replicas)
        return tokenizer

    @property
    def journal(self) -> tuple[dict[str, object], ...]:
        """Per epoch: means of the loss and its terms, figures of controllers and losses, health of the codebooks.

        The health is utilisation, perplexity and dead codes per level, over the epoch's batches. Empty for a tokenizer
        that was loaded.
        """
        return self._journal

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return self._network.codebook_sizes

    @property
    def width(self) -> int:
        return sum(width for _, width in self._columns)

    def encode(self, vectors_NV: np.ndarray) -> Encoded:
        check_width(vectors_NV, self.width)
        codes_NL = np.empty((len(vectors_NV), len(self.codebook_sizes)), dtype=np.int64)
        weights_NL: np.ndarray | None = None
        for part, (codes_CL, weights_CL) in _chunks(self._network.encode, vectors_NV):
            codes_NL[part] = codes_CL.numpy()
            if weights_CL is not None:
                weights_NL = np.empty(codes_NL.shape, dtype=np.float32) if weights_NL is None else weights_NL
                weights_NL[part] = weights_CL.numpy()
        return Encoded(codes_NL, weights_NL)

    def decode(self, codes_NL: np.ndarray, weights_NL: np.ndarray | None = None) -> np.ndarray | None:
        vectors_NV = np.empty((len(codes_NL), self.width), dtype=np.float32)
        for start in range(0, len(codes_NL), CHUNK):
            part = slice(start, start + CHUNK)
            weights_CL = None if weights_NL is None else torch.from_numpy(weights_NL[part])
            decoded = self._network.decode(torch.from_numpy(codes_NL[part]), weights_CL)
            if decoded is None:
                return None
            vectors_NV[part] = decoded.numpy()
        return vectors_NV

    def last_level_costs(self, vectors_NV: np.ndarray, codes_NL: np.ndarray) -> np.ndarray | None:
        check_width(vectors_NV, self.width)
        costs_NK = np.empty((len(vectors_NV), self.codebook_sizes[-1]), dtype=np.float32)
        for start in range(0, len(vectors_NV), CHUNK):
            part = slice(start, start + CHUNK)
            vectors_CV = torch.from_numpy(np.array(vectors_NV[part], dtype=np.float32))
            costs = self._network.last_level_costs(vectors_CV, torch.from_numpy(codes_NL[part]))
            if costs is None:
                return None
            costs_NK[part] = costs.numpy()
        return costs_NK

    def arrays(self) -> dict[str, np.ndarray]:
        names = "\n".join(name for name, _ in self._columns)
        columns: dict[str, np.ndarray] = {
            "column_names": np.frombuffer(names.encode(), dtype=np.uint8),
            "column_widths": np.array([width for _, width in self._columns], dtype=np.int64),
        }
        state = {f"network.{name}": tensor.numpy() for name, tensor in self._network.state_dict().items()}
        return columns | state

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], config: GradientLearnerConfig, seed: int) -> Self:
        names = arrays["column_names"].tobytes().decode().split("\n")
        columns = tuple(zip(names, arrays["column_widths"].tolist(), strict=True))
        with torch.random.fork_rng():
            network = build_network(config, columns)
        state = {name: torch.from_numpy(arrays[f"network.{name}"]) for name in network.state_dict()}
        network.load_state_dict(state)
        return cls(network, columns)


def build_network(config: GradientLearnerConfig, columns: Columns) -> Network:
    """The untrained network of the section, drawn from torch's generator.

    columns: (name, width) of the vector columns that are concatenated, in order. Raises ContractError when they do not
    suit the learner.
    """
    return NETWORKS[type(config)](config, columns)


def _columns(vectors_NV: np.ndarray, side: SideInformation) -> Columns:
    """Name and width of the vector columns; one column `vectors` if the side information names none."""
    columns = side.columns or (("vectors", vectors_NV.shape[1]),)
    check_width(vectors_NV, sum(width for _, width in columns))
    return columns


def _check_items(vectors_NV: np.ndarray, network: Network) -> None:
    size = max(network.codebook_sizes)
    if len(vectors_NV) < size:
        raise ContractError(
            "item vectors", f"at least {size} items for codebook_size {size}", f"{len(vectors_NV)} items"
        )


def _batches(
    vectors_NV: np.ndarray,
    config: GradientLearnerConfig,
    losses: tuple[ScheduledLoss, ...],
    seed: int,
    side: SideInformation,
    replicas: Replicas,
) -> Batches:
    inputs = loss_inputs(*config.losses, *config.further_losses)
    return Batches(
        vectors_NV,
        config.training.batch_size,
        seed,
        replicas,
        side.pairs_P2 if "pairs" in inputs else None,
        side.behavior_NE if BEHAVIOR in inputs else None,
        clip_quantile(losses, config.kind),
        config.training.pairs,
    )


def _check_collapse(tokenizer: GradientTokenizer, vectors_NV: np.ndarray, least: float, replicas: Replicas) -> None:
    """Raises CollapseError when a level uses too few codes.

    Encodes a sample first: a level that uses enough codes on the sample uses enough on all items.
    """
    every = len(vectors_NV) // (SAMPLE * max(tokenizer.codebook_sizes))
    if every > 1 and min(_usage(tokenizer, vectors_NV[::every], replicas).health().utilisation) >= least:
        return
    check_utilisation(_usage(tokenizer, vectors_NV, replicas).health(), least)


def _usage(tokenizer: GradientTokenizer, vectors_NV: np.ndarray, replicas: Replicas) -> CodeUsage:
    """Use of the codes by all items; each replica encodes its share of them."""
    first, end = (len(vectors_NV) * part // replicas.size for part in (replicas.rank, replicas.rank + 1))
    usage = CodeUsage(tokenizer.codebook_sizes, replicas.device)
    usage.count(torch.from_numpy(tokenizer.encode(vectors_NV[first:end]).codes_NL).to(replicas.device))
    usage.counts = replicas.sum(usage.counts)
    return usage


def _checkpoint(
    work: Path | None,
    config: GradientLearnerConfig,
    seed: int,
    replicas: Replicas,
    vectors_NV: np.ndarray,
    side: SideInformation,
) -> Checkpoint:
    if work is None or not replicas.first:
        return Checkpoint(None, "")
    return Checkpoint(work, identity_of(config, seed, replicas.size, vectors_NV, side))


def _chunks(
    encode: Callable[[Tensor], tuple[Tensor, Tensor | None]], vectors_NV: np.ndarray
) -> Iterator[tuple[slice, tuple[Tensor, Tensor | None]]]:
    """Rows, their codes and weights, chunk by chunk; zeros fill the last chunk up to the shape of the others."""
    with Bar(total=len(vectors_NV), desc="encode", unit=" items", unit_scale=True, disable=None) as progress:
        for start in range(0, len(vectors_NV), CHUNK):
            rows = vectors_NV[start : start + CHUNK]
            padded_CV = np.zeros((CHUNK, rows.shape[1]), dtype=np.float32)
            padded_CV[: len(rows)] = rows
            codes_CL, weights_CL = encode(torch.from_numpy(padded_CV))
            part = slice(start, start + len(rows))
            yield part, (codes_CL[: len(rows)], None if weights_CL is None else weights_CL[: len(rows)])
            progress.update(len(rows))
