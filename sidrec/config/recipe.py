"""The recipe and its sections: data, start, optimizer, parallel, precision, train, checkpoint, evaluate.

`model` and `tokenizer` have chapters of their own. The docstring under a key is its description in `--help`, in the
JSON schema and in `sidrec recipe explain`.
"""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter

from sidrec.config.learners import TokenizerConfig
from sidrec.config.model import ModelConfig
from sidrec.config.section import PlaceKey, changed_keys, section, without_repeats
from sidrec.io.places import StorePath


@section
class DataConfig:
    """Where rows come from, and how they become batches."""

    path: PlaceKey
    """Data folder: holds log/ and items.parquet. A local path, or a URI such as s3://bucket/folder."""
    catalog: PlaceKey
    """Catalog folder, made by `sidrec fit`. A local path, or a URI, which `sidrec fit` does not write."""
    train_on: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(without_repeats)] = ("train",)
    """Splits of the log whose rows are trained on, in the order of time. Statistics of the log, such as the counts in
    items.parquet, stay as they were prepared."""
    label: str = "label"
    """Label column to learn and to measure: label, or a label_<name> that the log has."""
    batch_size: PositiveInt = 4096
    """Rows per step over all ranks together, so that a recipe trains the same at any world size."""
    history_length: PositiveInt = 20
    """Most recent history items used per row."""
    lanes: PositiveInt = 8
    """Parallel streams that the rows of an epoch are split into; a multiple of the world size."""
    order: Literal["shuffled", "time"] = "shuffled"
    """Order of training rows. With time, a HID is trained on its past only, as in production."""
    shuffle_rows: PositiveInt = 65536
    """Rows in a lane's shuffle buffer."""
    workers: NonNegativeInt | None = None
    """Loader processes per rank; 0 makes batches in the training process. Left out: one for every four cores that the
    machine has for a rank, from 1 to 4. Any number makes the same batches."""
    bad_rows: Literal["refuse", "quarantine"] = "refuse"
    """Action on rows that break the data contract: refuse to go on, or count and leave out such rows."""
    cache_gb: PositiveFloat | None = None
    """Most gigabytes of a store's row groups that a machine keeps on local disk during a run. Left out: 20, or half of
    the free disk if that is less."""

    def unused_keys(self) -> dict[str, str]:
        return {} if isinstance(self.path, StorePath) else changed_keys(self, ["cache_gb"], "with a local data.path")


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
    """FBGEMM's row-wise Adagrad: one state value per row, not per element. Saves memory; faster on GPUs only."""

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
    """Optimizer of all parameters outside the embedding tables."""

    kind: Literal["adam", "adamw", "adagrad"] = "adam"
    """torch.optim's optimizer of that name."""
    lr: PositiveFloat = 1e-3
    """Learning rate."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay, as torch.optim's optimizer of that kind defines it."""
    fused: bool = False
    """Use torch's fused kernels, which update all layers at once and differ in the last bits. GPUs always use them."""


@section
class Schedule:
    """Factor on both learning rates: linear warm-up, then constant, linear or cosine to `final` at the last step."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    """Shape after the warm-up."""
    warmup_steps: NonNegativeInt = 0
    """Steps from 0 to the full rate."""
    final: NonNegativeFloat = 0.0
    """Factor at the last step (linear, cosine)."""

    def unused_keys(self) -> dict[str, str]:
        return changed_keys(self, ["final"], "with kind constant") if self.kind == "constant" else {}


@section
class OptimizerConfig:
    """Optimizers of tables and dense parameters."""

    tables: TableOptimizer = AdagradTables()
    """Optimizer of the embedding tables, fused into FBGEMM's backward pass."""
    hid: TableOptimizer | None = None
    """Optimizer of the HID table alone, to hold it back; left out, that of the other tables."""
    dense: DenseOptimizer = DenseOptimizer()
    """Optimizer of all other parameters."""
    schedule: Schedule = Schedule()
    """Factor on all learning rates over the steps of the training."""


ShardingKind = Literal[
    "data_parallel", "table_wise", "row_wise", "column_wise", "table_row_wise", "table_column_wise", "grid_shard"
]


@section
class ParallelConfig:
    """How tables are sharded over ranks, and which training pipeline runs."""

    sharding: Literal["auto"] | ShardingKind = "auto"
    """auto: TorchRec's planner chooses per table. Otherwise the sharding type of every table."""
    plan: Annotated[Path | None, tyro.conf.arg(aliases=("--plan",))] = None
    """File with the sharding plan to use unchanged, as each run writes it to plan.json."""
    calibration: Path | None = None
    """Cost model of this machine, written by `sidrec bench calibrate`; the planner then uses its costs."""
    pipeline: Literal["sparse_dist", "prefetch", "plain"] = "sparse_dist"
    """TorchRec's pipeline: sparse_dist is TrainPipelineSparseDist, plain is TrainPipelineBase. prefetch is
    PrefetchTrainPipelineSparseDist, which on a GPU also brings the next step's rows of tables in host memory into its
    cache."""

    def __post_init__(self) -> None:
        if self.plan is not None and self.sharding != "auto":
            raise ValueError(f"expected sharding auto beside the plan {self.plan}, got {self.sharding}")
        if self.plan is not None and self.calibration is not None:
            raise ValueError(f"expected no calibration beside the plan {self.plan}, got {self.calibration}")


@section
class PrecisionConfig:
    """Number formats. Other values than the defaults change results; docs/recipes.md has their measured effect."""

    tf32: bool = False
    """Multiply matrices of float32 as TF32 on a GPU, with 10 bits after the leading one instead of 23."""
    backbone: Literal["float32", "bfloat16"] = "float32"
    """Type in which the backbone's layers compute, by torch.autocast. Their weights, the layers of items and the loss
    stay in float32."""
    tables: Literal["float32", "float16"] = "float32"
    """Type of the embedding tables. The state of their optimizers stays in float32."""
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    """Rounding of updates of float16 tables. nearest drops updates that are smaller than half a unit in the last place;
    stochastic keeps them in the mean, on GPUs alone."""
    lookups: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of looked-up embeddings and of their gradients, which saves memory traffic. Layers read them as float32."""
    exchange: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type in which ranks exchange embeddings."""
    exchange_gradients: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type in which ranks exchange the gradients of embeddings."""

    def unused_keys(self) -> dict[str, str]:
        return changed_keys(self, ["rounding"], "with tables float32") if self.tables == "float32" else {}


@section
class TrainConfig:
    """The training loop."""

    runs: Path = Path("runs")
    """Folder of run directories; a run lives in RUNS/NAME/seedN."""
    epochs: PositiveInt = 1
    """Passes over the train split."""
    log_every: PositiveInt = 20
    """Steps between lines of metrics.jsonl and TensorBoard."""
    track: Annotated[tuple[Literal["mlflow", "wandb"], ...], AfterValidator(without_repeats)] = ()
    """Trackers that get the curves of TensorBoard too: MLflow (MLFLOW_TRACKING_URI, else RUNS/mlflow), Weights & Biases
    (WANDB_MODE). A tracker that is missing or fails is left out after a warning."""
    preflight: Literal["refuse", "warn"] = "refuse"
    """Action on a problem found before allocation: refuse to train, or print a warning and train."""
    row_ledger: bool = False
    """Record in the run directory which rows of the train split each step used."""
    non_finite: Literal["stop", "skip"] = "stop"
    """Action on a step with a non-finite loss or gradient: stop, or count the step and skip its update."""
    skip_at_most: PositiveInt = 10
    """Most consecutive steps that non_finite: skip may skip."""
    hang_minutes: PositiveFloat = 10.0
    """Minutes without progress after which a rank exits, so that torchrun can restart all ranks."""

    def unused_keys(self) -> dict[str, str]:
        return changed_keys(self, ["skip_at_most"], "with non_finite stop") if self.non_finite == "stop" else {}


@section
class EvaluateConfig:
    """What is measured after training."""

    splits: Annotated[tuple[str, ...], AfterValidator(without_repeats)] = ("test",)
    """Splits of the log to evaluate after training."""
    head_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of items, the most impressed in the train split first, that form the head; between 0 and 1."""
    tail_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of items, the least impressed first, that form the tail; between 0 and 1. The torso lies between head and
    tail; cold items have no train impression."""
    save_predictions: bool = True
    """Write predictions_<split>.parquet into the run directory."""

    def __post_init__(self) -> None:
        if self.head_share + self.tail_share > 1:
            raise ValueError(
                f"expected head_share + tail_share of at most 1, got {self.head_share} + {self.tail_share}"
            )


@section
class BestConfig:
    """How the best checkpoint is chosen. It is kept in addition to the newest ones, and the run's reported metrics come
    from it."""

    split: str = "validation"
    """Split of the log evaluated during training. Selecting on a split that is also reported biases the report."""
    metric: Literal["auc", "gauc", "uauc", "ne", "log_loss"] = "auc"
    """Metric over all rows of the split. Higher is better for auc, gauc and uauc; lower for ne and log_loss."""
    every: NonNegativeInt = 0
    """Steps between evaluations; 0 evaluates at the end of each epoch."""

    def better(self, value: float, than: float | None) -> bool:
        """Whether `value` is better than `than`; None: nothing to compare with yet."""
        if than is None:
            return True
        return value < than if self.metric in ("ne", "log_loss") else value > than


@section
class CheckpointConfig:
    """When checkpoints are written and which are kept. A resumed run may use other values."""

    every: NonNegativeInt = 0
    """Steps between checkpoints, in addition to the one after each epoch; 0 writes only the latter."""
    keep: PositiveInt = 2
    """Number of newest checkpoints to keep."""
    background: bool = True
    """Write checkpoints from a copy in memory while training continues. The copy doubles the memory of a rank's tables
    and optimizer state."""
    failures: PositiveInt = 3
    """Consecutive failed writes after which training stops. A failed write of the last checkpoint always stops it."""
    best: BestConfig | None = None
    """Also keep the best checkpoint; left out, none is selected."""


@section
class StartConfig:
    """Warm start: weights that a new run takes from another run. A run that resumes its own checkpoint ignores it."""

    checkpoint: Path | None = None
    """Run directory or checkpoint to take weights from. Its id tables may have fewer rows than this run's."""
    optimizer: bool = True
    """Also take the state of the optimizers."""
    grow: bool = False
    """Start a model with SIDs or content from a checkpoint of item kind hid: layers that have more inputs than there
    read the new ones with weight 0, so that the first step's scores are the checkpoint's [I]."""
    old_catalog: Path | None = None
    """Catalog that the checkpoint was trained with, or one extended from it, if data.catalog was fitted again: SID
    tables are carried over to the new codes by the items that both catalogs hold [I]."""
    without: Annotated[tuple[str, ...], AfterValidator(without_repeats)] = ()
    """Tables that keep their initial values."""
    tables: Mapping[str, str] = field(default_factory=dict)
    """Table -> FILE or FILE:NAME with its rows (safetensors, npy or parquet). Rows not in the file keep their initial
    values."""

    def __post_init__(self) -> None:
        if self.without and self.checkpoint is None:
            raise ValueError(f"expected no `without` where there is no checkpoint, got {', '.join(self.without)}")
        if self.grow and self.old_catalog is not None:
            raise ValueError(
                f"expected no `old_catalog` with `grow`, whose checkpoint has no SIDs, got {self.old_catalog}"
            )

    def unused_keys(self) -> dict[str, str]:
        where = "where there is no checkpoint"
        return changed_keys(self, ["optimizer", "grow", "old_catalog"], where) if self.checkpoint is None else {}


@section
class Recipe:
    """Everything a run does."""

    name: str
    """Names the run directory."""
    seed: int = 0
    """Seed of initialisation and row order."""
    data: DataConfig
    """Where rows come from, and how they become batches."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """What `sidrec fit` learns, and from which vectors."""
    model: ModelConfig = ModelConfig()
    """The ranker: item representation, context, backbone."""
    start: StartConfig = StartConfig()
    """Weights of another run that a new run starts from."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizers of the tables and of the dense part, and the schedule of their learning rates."""
    parallel: ParallelConfig = ParallelConfig()
    """How tables are sharded over ranks."""
    precision: PrecisionConfig = PrecisionConfig()
    """Number formats of tables, layers and exchanges."""
    train: TrainConfig = TrainConfig()
    """Length of the training, logs, and what to do when something goes wrong."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When checkpoints are written, and which are kept."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What is measured after training."""

    def __post_init__(self) -> None:
        item, data = self.model.item, self.data
        least = item.least_rows_per_lane
        if data.batch_size < least * data.lanes:
            bound = (
                f"at least {least} * data.lanes = {least * data.lanes} with a contrastive loss in model.item, "
                "whose negatives are a lane's"
            )
            raise ValueError(f"data.batch_size: expected {bound}, got {data.batch_size}")
        best = self.checkpoint.best
        for split in (*self.evaluate.splits, *([best.split] if best else [])):
            if split != "train" and split in data.train_on:
                raise ValueError(f"data.train_on: expected splits that are not evaluated, got {split!r}")
        kept = self.model.history_pooling.kept(data.history_length)
        if kept > data.history_length:
            expected = f"at least the {kept} items that the routes of model.history_pooling keep"
            raise ValueError(f"data.history_length: expected {expected}, got {data.history_length}")

    def unused_keys(self) -> dict[str, str]:
        """Dotted keys that have no effect because of another section -> what is expected instead.

        Each section names its own (`sidrec.config.section`). `sidrec.config.load` refuses a new recipe that has any,
        and ignores them in the recipe of a run that exists.
        """
        if self.optimizer.hid is None or self.model.item.hids is not None:
            return {}
        expected = f"none with item kind {self.model.item.kind}, which has no HIDs"
        return {"optimizer.hid": f"{expected}, got {self.optimizer.hid.kind}"}

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.train.runs / self.name / f"seed{self.seed}"


RECIPE: TypeAdapter[Recipe] = TypeAdapter(Recipe)
"""Checks plain data against the recipe, and knows its JSON schema."""
