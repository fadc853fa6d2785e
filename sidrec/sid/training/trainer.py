"""Trains a network that learns codes: epochs and steps, use of the codes, checkpoints, several processes.

Shapes: B items of a batch, L levels, K codes of a level, D width of a codebook.
"""

import hashlib
import json
import logging
import math
import pickle
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sidrec.config.learner_parts import Training
from sidrec.config.learners import GradientLearnerConfig
from sidrec.errors import CollapseError, DivergedError
from sidrec.io.files import replaced_file
from sidrec.io.progress import Bar
from sidrec.sid.losses.loss import schedule_factor
from sidrec.sid.networks.codebook import Codebook
from sidrec.sid.networks.network import Coded, ItemBatch, Network
from sidrec.sid.networks.token_weights import TokenRouter
from sidrec.sid.replicas import Replicas
from sidrec.sid.tokenizer import SideInformation
from sidrec.sid.training.batches import Batches
from sidrec.sid.training.objectives import ScheduledLoss

PLACEMENT_POINTS = 256  # items per code on which k-means places the codebooks


class Trainer:
    """Trains `network` in place, as `config` says. `journal` gets one entry per epoch.

    torch's generator is reseeded every epoch, so that an epoch depends only on the state before it.

    Replicas average gradients and sum code counts. The first replica places the codebooks on a sample of its items and
    revives dead codes from its batches; after every epoch all replicas copy its buffers of losses. Losses that compare
    items with each other (contrast, repulsion) compare the items of one replica's share of the batch.
    """

    def __init__(
        self,
        network: Network,
        losses: Sequence[ScheduledLoss],
        batches: Batches,
        config: Training,
        seed: int,
        replicas: Replicas,
        checkpoint: "Checkpoint",
    ) -> None:
        self.network, self._losses = network.to(replicas.device), losses
        self._batches, self._config, self._seed = batches, config, seed
        self._replicas, self._checkpoint = replicas, checkpoint
        self._modules = nn.ModuleList([network, *(scheduled.loss.to(replicas.device) for scheduled in losses)])
        for module in self._modules.modules():
            if isinstance(module, Codebook | TokenRouter):
                module.replicas = replicas
        self._optimizer = _optimizer(self._modules, network, config)
        self.journal: list[dict[str, Any]] = []

    def run(self) -> None:
        """Trains to the end, from the checkpoint if there is one.

        Raises DivergedError as soon as the loss is NaN or infinite, on all replicas.
        """
        if not self._resume():
            self._place_codebooks()
        steps, done = self._batches.steps, len(self.journal)
        progress = Bar(
            total=self._config.epochs * steps,
            initial=done * steps,
            desc="train",
            unit=" steps",
            disable=None if self._replicas.first else True,
        )
        self._modules.train()
        with progress:
            for epoch in range(done, self._config.epochs):
                entry = self._epoch(epoch, progress)
                self.journal.append(entry)
                progress.set_postfix(_postfix(entry))
                self._save(epoch + 1)
        self._modules.eval()

    def _place_codebooks(self) -> None:
        torch.manual_seed(self._epoch_seed(-1))
        if self._replicas.first:
            self.network.place_codebooks(self._batches.sample(PLACEMENT_POINTS * max(self.network.codebook_sizes)))
        self._replicas.broadcast([*self._modules.parameters(), *self._modules.buffers()])

    def _epoch(self, epoch: int, progress: Bar) -> dict[str, Any]:
        torch.manual_seed(self._epoch_seed(epoch))
        for scheduled in self._losses:
            scheduled.loss.begin_epoch(self.network)
        usage = CodeUsage(self.network.codebook_sizes, self._replicas.device)
        sums: dict[str, Tensor] = {}
        for step, batch in enumerate(self._batches.epoch(epoch), start=epoch * self._batches.steps):
            coded = self._step(batch, step, sums)
            usage.count(coded.codes_BL)
            controllers = self.network.after_step()
            progress.update()
        usage.counts = self._replicas.sum(usage.counts)
        revived = self._revive(usage, coded.targets) if self._revives(epoch + 1) else 0
        self._replicas.broadcast([buffer for scheduled in self._losses for buffer in scheduled.loss.buffers()])
        means = torch.stack(list(sums.values())) / self._batches.steps
        means = self._replicas.sum(means) / self._replicas.size
        entry = {"epoch": epoch + 1, **dict(zip(sums, means.tolist(), strict=True)), **controllers}
        for name, loss, _ in self._losses:
            entry |= {f"{name}/{key}": value for key, value in loss.diagnostics().items()}
        return entry | asdict(usage.health()) | {"revived_codes": revived}

    def _step(self, batch: ItemBatch, step: int, sums: dict[str, Tensor]) -> Coded:
        """Forward, losses, backward, optimizer. Adds the loss and its terms to `sums`."""
        coded = self.network(batch)
        terms = dict(coded.terms)
        progress = step / (self._config.epochs * self._batches.steps)
        for name, loss_of, schedule in self._losses:
            terms[name] = schedule_factor(schedule, progress) * loss_of(coded, batch, self.network)
        loss = torch.stack(list(terms.values())).sum()
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self._check_divergence(self._average_gradients(loss), terms, step)
        self._optimizer.step()
        for name, term in {"loss": loss, **terms}.items():
            sums[name] = sums.get(name, torch.zeros_like(loss)).detach() + term.detach()
        return coded

    def _average_gradients(self, loss: Tensor) -> float:
        """Averages gradients and the loss over replicas. Returns the mean loss."""
        mean = loss.detach().clone()
        if self._replicas.size > 1:
            for parameter in self._modules.parameters():
                if parameter.grad is None:  # unused in this replica's batch, perhaps used in another's
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in self._modules.parameters() if parameter.grad is not None]
            self._replicas.average([mean, *gradients])
        return float(mean)

    def _check_divergence(self, loss: float, terms: dict[str, Tensor], step: int) -> None:
        if math.isfinite(loss):
            return
        values = ", ".join(f"{name} {float(term.detach()):.3g}" for name, term in terms.items())
        epoch = step // self._batches.steps + 1
        raise DivergedError(f"the loss is {loss} in epoch {epoch}, step {step + 1} ({values}); try a lower training.lr")

    def _revives(self, epochs: int) -> bool:
        """Whether dead codes are revived after this many epochs."""
        every = self._config.revive_every
        return every > 0 and epochs % every == 0 and epochs <= self._config.revive_until * self._config.epochs

    def _revive(self, usage: "CodeUsage", targets: Sequence[Tensor]) -> int:
        """Moves dead codes to points that the last batch had at their level; returns how many moved."""
        revived = 0
        for codebook, counts_K, target_BD in zip(_codebooks(self.network), usage.levels(), targets, strict=True):
            revived += codebook.revive(counts_K == 0, target_BD.detach())
        codebooks = self.network.codebooks
        self._replicas.broadcast([*codebooks.parameters(), *codebooks.buffers()])
        return revived

    def _save(self, epochs: int) -> None:
        if self._replicas.first and (epochs % self._config.save_every == 0 or epochs == self._config.epochs):
            modules, optimizer = self._modules.state_dict(), self._optimizer.state_dict()
            self._checkpoint.save({"modules": modules, "optimizer": optimizer, "journal": self.journal})

    def _resume(self) -> bool:
        """Restores a checkpoint; returns whether there was one. It holds no generator, as every epoch seeds its own."""
        state = self._replicas.broadcast_object(self._checkpoint.load() if self._replicas.first else None)
        if state is None:
            return False
        self._modules.load_state_dict(state["modules"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.journal = list(state["journal"])
        return True

    def _epoch_seed(self, epoch: int) -> int:
        """A seed that differs by config seed, epoch and replica; epoch -1 is the placement of the codebooks."""
        entropy = np.random.SeedSequence([self._seed, epoch + 1, self._replicas.rank])
        return int(entropy.generate_state(1, np.uint64)[0] >> 1)


def _optimizer(modules: nn.Module, network: Network, config: Training) -> torch.optim.Optimizer:
    codewords = list(network.codebooks.parameters())
    own = {id(parameter) for parameter in codewords}
    others = [parameter for parameter in modules.parameters() if id(parameter) not in own]
    groups = [{"params": others, "weight_decay": config.weight_decay}, {"params": codewords, "weight_decay": 0.0}]
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind([group for group in groups if group["params"]], lr=config.lr, fused=True)


def _codebooks(network: Network) -> Iterator[Codebook]:
    for codebook in network.codebooks:
        assert isinstance(codebook, Codebook), "gradient-trained networks have Codebooks"
        yield codebook


def _postfix(entry: dict[str, Any]) -> dict[str, str]:
    least = min(entry["perplexity"])
    return {
        "epoch": str(entry["epoch"]),
        "loss": f"{entry['loss']:.4g}",
        "least_perplexity": f"{least:.0f}",
        "dead": str(sum(entry["dead_codes"])),
    }


@dataclass(frozen=True)
class Health:
    """Per level: share of codes in use, exp of the entropy of their use, number of codes that no item took."""

    utilisation: list[float]
    perplexity: list[float]
    dead_codes: list[int]


class CodeUsage:
    """How many items took each code of each level."""

    def __init__(self, codebook_sizes: Sequence[int], device: torch.device | None = None) -> None:
        self._sizes = list(codebook_sizes)
        first = np.cumsum([0, *self._sizes])
        self._total = int(first[-1])
        self._first_L = torch.tensor(first[:-1], device=device)
        self.counts = torch.zeros(self._total, dtype=torch.int64, device=device)

    def count(self, codes_BL: Tensor) -> None:
        """Adds the codes of a batch."""
        self.counts += torch.bincount((codes_BL + self._first_L).flatten(), minlength=self._total)

    def levels(self) -> tuple[Tensor, ...]:
        """int64 [K] counts of every level."""
        return torch.split(self.counts, self._sizes)

    def health(self) -> Health:
        """Health by the counts so far. Perplexity is at least 1, and 0 where nothing was counted."""
        counts = [counts_K.cpu().numpy() for counts_K in self.levels()]
        return Health(
            utilisation=[float((counts_K > 0).mean()) for counts_K in counts],
            perplexity=[_perplexity(counts_K) for counts_K in counts],
            dead_codes=[int((counts_K == 0).sum()) for counts_K in counts],
        )


def _perplexity(counts_K: np.ndarray) -> float:
    taken = counts_K[counts_K > 0]
    if not len(taken):
        return 0.0
    share = taken / taken.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def check_utilisation(health: Health, least_utilisation: float) -> None:
    """Raises CollapseError naming the first level that uses less than the share `least_utilisation` of its codes."""
    for level, share in enumerate(health.utilisation, start=1):
        if share < least_utilisation:
            raise CollapseError(
                f"level {level}: {share:.1%} of its codes are in use after the training, and least_utilisation asks for"
                f" {least_utilisation:.1%}; try a smaller codebook_size, a lower lr, or revive_until closer to 1"
            )


# The checkpoint of a fit, from which a killed fit resumes: one file, replaced in one step.


CHECKPOINT = "training.pt"
OLD_PARTIAL = "training.partial"  # the partial file's name in version 0.1.0
VERSION = 1
ROWS = 65_536  # rows hashed at a time

_log = logging.getLogger(__name__)


class Checkpoint:
    """The checkpoint of one training, in a folder that the first `save` makes. work: None turns checkpoints off."""

    def __init__(self, work: Path | None, identity: str) -> None:
        """identity: of the training, see `identity_of`; a checkpoint of another identity is ignored."""
        self._path = None if work is None else work / CHECKPOINT
        self._identity = identity

    def save(self, state: dict[str, Any]) -> None:
        """state: dicts and lists of tensors and plain values."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(self._path) as partial:
            torch.save({"version": VERSION, "identity": self._identity, "state": state}, partial)

    def load(self) -> dict[str, Any] | None:
        """The state last saved. None if there is none, or, with a warning, if it is damaged or of another training."""
        if self._path is None or not self._path.is_file():
            return None
        try:
            content = torch.load(self._path, map_location="cpu", weights_only=True)
            version, identity, state = content["version"], content["identity"], content["state"]
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
            _log.warning("%s: not readable (%s), so the training starts anew", self._path, " ".join(str(error).split()))
            return None
        if version != VERSION:
            _log.warning("%s: of version %s, not %s, so the training starts anew", self._path, version, VERSION)
        elif identity != self._identity:
            _log.warning("%s: of another config, seed or data, so the training starts anew", self._path)
        else:
            return state
        return None


def remove_checkpoint(work: Path) -> None:
    """Removes the files of a training from its folder, and the folder if it is empty then. Ignores OSError."""
    with suppress(OSError):
        for path in (*work.glob(f"{CHECKPOINT}*"), work / OLD_PARTIAL):  # a save that was killed leaves a partial file
            path.unlink(missing_ok=True)
        work.rmdir()


def identity_of(
    config: GradientLearnerConfig, seed: int, processes: int, vectors_NV: np.ndarray, side: SideInformation
) -> str:
    """A digest of the config, the seed, the number of processes and every byte of the training data."""
    digest = hashlib.blake2b()
    digest.update(json.dumps([asdict(config), seed, processes, side.columns]).encode())
    for array in (vectors_NV, side.pairs_P2, side.behavior_NE):
        digest.update(b"none" if array is None else f"{array.shape} {array.dtype}".encode())
        for start in range(0, 0 if array is None else len(array), ROWS):
            assert array is not None
            digest.update(np.ascontiguousarray(array[start : start + ROWS]).tobytes())
    return digest.hexdigest()
