"""The whole recipe and its running parts: data, optimizer, parallel, train."""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from sidrec.config.learners import TokenizerConfig
from sidrec.config.model import ModelConfig
from sidrec.config.section import section, without_repeats


@section
class DataConfig:
    """Where rows come from and how they are dealt to the ranks."""

    path: Path
    """Data folder: holds log/ and items.parquet."""
    catalog: Path
    """Catalog folder, made by `sidrec fit`."""
    batch_size: PositiveInt = 4096
    """Rows per step over all ranks together: the same recipe trains the same at any world size."""
    history_length: PositiveInt = 20
    """Latest history items used per row."""
    lanes: PositiveInt = 8
    """Parallel streams that the rows of an epoch are split into; the world size must divide it."""
    order: Literal["shuffled", "time"] = "shuffled"
    """Order of training rows. In time order a HID has only seen its past, as in a production stream."""
    shuffle_rows: PositiveInt = 65536
    """Rows that a lane holds and mixes at a time."""
    workers: NonNegativeInt = 1
    """Loader processes per rank; 0 builds batches in the training process."""
    bad_rows: Literal["refuse", "quarantine"] = "refuse"
    """What to do with rows that break the contract: stop, or count them and leave them out."""


@section
class AdagradTables:
    """FBGEMM's element-wise Adagrad."""

    kind: Literal["adagrad"] = "adagrad"
    lr: PositiveFloat = 0.05
    """Learning rate."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""


@section
class RowwiseAdagradTables:
    """FBGEMM's row-wise Adagrad: one state value per row. Saves memory, and time only on GPUs."""

    kind: Literal["rowwise_adagrad"] = "rowwise_adagrad"
    lr: PositiveFloat = 0.05
    """Learning rate."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""


@section
class SgdTables:
    """FBGEMM's SGD."""

    kind: Literal["sgd"] = "sgd"
    lr: PositiveFloat = 0.1
    """Learning rate."""


TableOptimizer = Annotated[AdagradTables | RowwiseAdagradTables | SgdTables, Field(discriminator="kind")]


@section
class DenseOptimizer:
    """Optimizer of everything that is not a table."""

    kind: Literal["adam", "adamw", "adagrad"] = "adam"
    """torch.optim's optimizer of that name."""
    lr: PositiveFloat = 1e-3
    """Learning rate."""
    weight_decay: NonNegativeFloat = 0.0
    """As the optimizer defines it."""


@section
class Schedule:
    """Factor on both learning rates: linear warm-up, then constant, linear or cosine to `final` at the last step."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    """Shape after the warm-up."""
    warmup_steps: NonNegativeInt = 0
    """Steps from 0 to the full rate."""
    final: NonNegativeFloat = 0.0
    """Factor at the last step (linear, cosine)."""


@section
class OptimizerConfig:
    """Who updates what."""

    tables: TableOptimizer = AdagradTables()
    hid: TableOptimizer | None = None
    """Optimizer of the HID table alone, to hold it back; left out, that of the other tables."""
    dense: DenseOptimizer = DenseOptimizer()
    schedule: Schedule = Schedule()


ShardingKind = Literal[
    "data_parallel", "table_wise", "row_wise", "column_wise", "table_row_wise", "table_column_wise", "grid_shard"
]


@section
class ParallelConfig:
    """How tables are laid over ranks."""

    sharding: Literal["auto"] | ShardingKind = "auto"
    """Let TorchRec's planner choose, or force one sharding type for every table."""
    plan: Annotated[Path | None, tyro.conf.arg(aliases=("--plan",))] = None
    """Sharding plan to train with, exactly: a file as every run leaves it, plan.json."""
    calibration: Path | None = None
    """What work costs on this machine, as sidrec bench calibrate wrote it: plans are then searched by these costs."""
    pipeline: Literal["sparse_dist", "plain"] = "sparse_dist"
    """TrainPipelineSparseDist, or TrainPipelineBase."""

    def __post_init__(self) -> None:
        if self.plan is not None and self.sharding != "auto":
            raise ValueError(f"expected sharding auto beside the plan {self.plan}, got {self.sharding}")
        if self.plan is not None and self.calibration is not None:
            raise ValueError(f"expected no calibration beside the plan {self.plan}, got {self.calibration}")


@section
class TrainConfig:
    """The training loop."""

    runs: Path = Path("runs")
    """Folder of run directories; a run lives in RUNS/NAME/seedN."""
    epochs: PositiveInt = 1
    """Passes over the train split."""
    log_every: PositiveInt = 20
    """Steps between lines of metrics.jsonl and TensorBoard."""
    preflight: Literal["refuse", "warn"] = "refuse"
    """What to do about a problem found before anything is allocated: refuse to train, or say it and train."""
    row_ledger: bool = False
    """Note in the run directory which rows of the train split each step was trained on."""
    non_finite: Literal["stop", "skip"] = "stop"
    """What to do with a step whose loss or gradients are not finite: stop, or count it and leave it out."""
    skip_at_most: PositiveInt = 10
    """Steps in a row that may be left out."""
    hang_minutes: PositiveFloat = 10.0
    """Minutes without a sign of progress after which a rank ends itself, so that torchrun can start all again."""


@section
class EvaluateConfig:
    """What is measured after training."""

    splits: Annotated[tuple[str, ...], AfterValidator(without_repeats)] = ("test",)
    """Splits of the log to evaluate."""
    head_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of items, by train impressions, that make the head."""
    tail_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of items, by train impressions, that make the tail; torso is between. Cold: no train impression at all."""
    save_predictions: bool = True
    """Write predictions_<split>.parquet into the run directory."""

    def __post_init__(self) -> None:
        if self.head_share + self.tail_share > 1:
            raise ValueError(
                f"expected head_share + tail_share of at most 1, got {self.head_share} + {self.tail_share}"
            )


# When a run is saved, what is kept of it, and by what the best of it is chosen.


@section
class BestConfig:
    """By what the best checkpoint is chosen. It is kept beside the newest ones, and the run's metrics are its."""

    split: str = "validation"
    """Split of the log that is evaluated while training goes on. One that is also reported flatters the report."""
    metric: Literal["auc", "gauc", "uauc", "ne", "log_loss"] = "auc"
    """Metric over all rows of the split; of ne and log_loss the lowest value is the best."""
    every: NonNegativeInt = 0
    """Steps between evaluations; 0 evaluates at the end of each epoch."""

    def better(self, value: float, than: float | None) -> bool:
        """Whether `value` beats `than`, None where there is none so far."""
        if than is None:
            return True
        return value < than if self.metric in ("ne", "log_loss") else value > than


@section
class CheckpointConfig:
    """Checkpoints. A run may be continued with other values than it was begun with."""

    every: NonNegativeInt = 0
    """Steps between checkpoints; 0 saves at the end of each epoch only, which is saved in any case."""
    keep: PositiveInt = 2
    """Newest checkpoints kept."""
    background: bool = True
    """Train on while a checkpoint is written, from a copy in memory: a rank's tables and their optimizer's state take
    their room twice."""
    failures: PositiveInt = 3
    """Checkpoints in a row that may fail to be written before training stops. The last of a run must be written."""
    best: BestConfig | None = None
    """Keep the best checkpoint too; left out, none is chosen."""


# What a new run starts from, in the place of first values.


@section
class StartConfig:
    """What a new run starts from. A run that goes on from a checkpoint of its own has no use for it any more."""

    checkpoint: Path | None = None
    """Another run's directory, or a checkpoint: start from its weights. Tables of ids may have grown since."""
    optimizer: bool = True
    """Take over the state of the optimizers too."""
    without: Annotated[tuple[str, ...], AfterValidator(without_repeats)] = ()
    """Tables that keep their first values nevertheless."""
    tables: Mapping[str, str] = field(default_factory=dict)
    """Table -> FILE or FILE:NAME with rows of it (safetensors, npy, parquet); what these lack keeps first values."""

    def __post_init__(self) -> None:
        if self.without and self.checkpoint is None:
            raise ValueError(f"expected no `without` where there is no checkpoint, got {', '.join(self.without)}")


@section
class Recipe:
    """Everything a run does."""

    name: str
    """Names the run directory."""
    seed: int = 0
    """Seed of initialisation and row order."""
    data: DataConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    start: StartConfig = StartConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    parallel: ParallelConfig = ParallelConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def __post_init__(self) -> None:
        item, data = self.model.item, self.data
        least = item.least_rows_per_lane
        if data.batch_size < least * data.lanes:
            bound = (
                f"at least {least} * data.lanes = {least * data.lanes} with model.item.contrastive, "
                "whose negatives are a lane's"
            )
            raise ValueError(f"data.batch_size: expected {bound}, got {data.batch_size}")

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.train.runs / self.name / f"seed{self.seed}"
