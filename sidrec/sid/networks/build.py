"""From a learner's section to its network."""

from collections.abc import Callable
from typing import Any

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
from sidrec.sid.networks.adc_sid import AdcSid
from sidrec.sid.networks.mm_rqvae import MmRqVae
from sidrec.sid.networks.multi_vq import MultiVq
from sidrec.sid.networks.network import Network
from sidrec.sid.networks.rqvae import RqVae

Columns = tuple[tuple[str, int], ...]

NETWORKS: dict[type, Callable[[Any, Columns], Network]] = {
    **dict.fromkeys((RqVaeConfig, LetterConfig, DasLiteConfig, QuaSidConfig, AdaSidConfig), RqVae),
    MultiVqConfig: MultiVq,
    MmRqVaeConfig: MmRqVae,
    AdcSidConfig: AdcSid,
}


def build_network(config: GradientLearnerConfig, columns: Columns) -> Network:
    """The untrained network, drawn from torch's generator.

    columns: (name, width) of the vector columns that are concatenated, in order. Raises ContractError when they do not
    suit the learner.
    """
    return NETWORKS[type(config)](config, columns)
