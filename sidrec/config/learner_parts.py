"""Parts of the section `tokenizer.learner`: what learners share, presets, the router of token weights, the training.

Every default cites its source; [I] marks one of our own.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from sidrec.config.section import changed_keys, section
from sidrec.config.sid_losses import SidLossConfig

Values = Mapping[str, Any]  # of a recipe's section


class LearnerSection:
    """The section of a learner. `sidrec.sid.learners.registry` says what to add for a new one.

    presets: name -> the values that a preset of that name gives to keys that the recipe leaves out.
    """

    presets: ClassVar[Mapping[str, Values]] = {}

    def check_use(self, vectors: tuple[str, ...], resolve_collisions: bool) -> None:
        """Raises ValueError when the learner cannot use the tokenizer's vector columns or resolve collisions."""

    def unordered_levels(self, vectors: tuple[str, ...]) -> int:
        """The number of levels, if they are independent of each other; 0 if each refines the one before.

        A pair of independent codes, such as s12, says no more than both codes do. vectors: the tokenizer's columns.
        """
        return 0

    def unused_keys(self) -> dict[str, str]:
        """Keys with values that other keys make ineffective -> what is expected instead."""
        return {}


def fill_preset(values: Any, presets: Mapping[str, Values]) -> Any:
    """A learner's section as the recipe has it, with the values of its preset for keys that it leaves out.

    Sections in it are filled key by key, lists are replaced. Unknown names are left to the check of the key.
    """
    name = values.get("preset")
    preset = presets.get(name) if isinstance(name, str) else None
    return values if preset is None else _filled(values, preset)


def _filled(values: Values, preset: Values) -> dict[str, Any]:
    filled = {**preset, **values}
    for key, inner in preset.items():
        if isinstance(inner, Mapping) and isinstance(values.get(key), Mapping):
            filled[key] = _filled(values[key], inner)
    return filled


@section
class Router:
    """Token weights R(x) = relu(MLP(x) + b), kept sparse by ReMoE's controller (ADC-SID, eq. 22 and 23).

    The loss is lambda (1/B) sum_t sum_j f_j R_tj with f_j = sum_t 1[R_tj > 0] / ((1 - sparsity) B); after every step
    lambda grows by `rate` while too few weights are zero, and shrinks otherwise.
    """

    sparsity: Annotated[float, Field(gt=0, lt=1)] = 1 / 3
    """Share of weights that should be zero; not published for ADC-SID."""
    target: Literal["global", "item_norm"] = "global"
    """global: the same sparsity for all items. item_norm: sparsity * (1 - scaled behaviour norm) of each item."""
    balance: Literal["per_expert", "scalar"] = "per_expert"
    """per_expert: f_j of ReMoE. scalar: one f for all experts, as in ADC-SID's first version; it cannot balance."""
    first_strength: PositiveFloat = 1e-8
    """Initial lambda."""
    rate: Annotated[float, Field(gt=1)] = 1.2
    """Factor of lambda per step of the controller, above 1."""
    regularize: bool = True
    """Add the sparsity loss; false is the ablation "w/o sparse training"."""
    hidden: PositiveInt = 64
    """Width of the hidden layer."""

    def unused_keys(self) -> dict[str, str]:
        of_loss = ["sparsity", "target", "balance", "first_strength", "rate"]
        return {} if self.regularize else changed_keys(self, of_loss, "with regularize false")


@section
class Pairs:
    """How a training draws item pairs, for losses that need some.

    The papers draw trigger-target pairs: `{directed: true, draw: pairs}`. The defaults train on every item [I].
    """

    directed: bool = False
    """true: only the second item of a pair is a partner, of the first. false: each is a partner of the other."""
    draw: Literal["items", "pairs"] = "items"
    """items: every item is an anchor once per epoch, with one of its partners. pairs: as many pairs as there are items
    are drawn per epoch, each pair equally likely each time; items in no pair are never seen."""


@section
class Training:
    """How a gradient-trained learner learns."""

    epochs: PositiveInt = 100
    """Passes over all items, or over as many pairs."""
    batch_size: PositiveInt = 1024
    """Items per step over all processes; with pairs, half of them are partners of the other half."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    """torch.optim's optimizer of that name; adam adds the weight decay to the gradient."""
    lr: PositiveFloat = 1e-3
    """Learning rate."""
    weight_decay: NonNegativeFloat = 1e-4
    """Weight decay; codebooks have none."""
    pairs: Pairs = Pairs()
    """How pairs are drawn, where a loss needs some."""
    revive_every: NonNegativeInt = 1
    """Epochs between two revivals, which move codes that no item took to random residuals; 0 is never."""
    revive_until: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Share of the training after which revivals end, so that the codebooks settle."""
    least_utilisation: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The fit fails when a smaller share of a codebook is in use after the training: the codebook collapsed."""
    save_every: PositiveInt = 10
    """Epochs between checkpoints, from which a killed fit resumes."""

    def unused_keys(self) -> dict[str, str]:
        return {} if self.revive_every else changed_keys(self, ["revive_until"], "with revive_every 0")


@section
class GradientLearner(LearnerSection):
    """Keys that all gradient-trained learners have."""

    levels: PositiveInt = 3
    """Levels L of a SID."""
    codebook_size: PositiveInt = 256
    """Codes K per level."""
    width: PositiveInt = 32
    """Width d of latents and codewords."""
    hidden: tuple[PositiveInt, ...] = (512, 256, 128)
    """Hidden widths of the encoder; the decoder has them reversed."""
    commitment: NonNegativeFloat = 0.25
    """beta: weight of the commitment, relative to the codebook loss."""
    reconstruction: Literal["sum", "mean"] = "sum"
    """Squared error: sum or mean over dimensions, always mean over items. Codebook loss and commitment are reduced in
    the same way; their mean is over levels too."""
    router: Router | None = None
    """Token weights of every level, exported with the codes; null for none."""
    losses: tuple[SidLossConfig, ...] = ()
    """The learner's own losses."""
    further_losses: tuple[SidLossConfig, ...] = ()
    """Losses added to its own."""
    training: Training = Training()
    """Length and optimizer of the training."""

    def unused_keys(self) -> dict[str, str]:
        return unused_pairs(self.training, (*self.losses, *self.further_losses))


def unused_pairs(training: Training, losses: tuple[SidLossConfig, ...]) -> dict[str, str]:
    """The key `training.pairs` where no loss needs pairs, with what is expected instead."""
    if any(loss.needs_pairs for loss in losses) or training.pairs == Pairs():
        return {}
    return {"training.pairs": "none without a loss that needs pairs, such as contrast, got other values"}
