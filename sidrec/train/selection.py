"""Which of a run's checkpoints is the best: a split is evaluated while training goes on."""

from torchrec.distributed import DistributedModelParallel

from sidrec.checkpoint.position import Best, Position
from sidrec.config import Recipe
from sidrec.config.checkpoint import BestConfig
from sidrec.parallel.process_group import Ranks
from sidrec.train.data import Data
from sidrec.train.evaluation import AbandonedError, score_split
from sidrec.train.metrics import measure
from sidrec.train.stopping import Stopping


class Selection:
    """Knows when to evaluate, evaluates, and remembers the best value; the same on every rank.

    best: None before the first value. measured: the last step that was evaluated, or 0.
    """

    def __init__(
        self,
        config: BestConfig,
        recipe: Recipe,
        data: Data,
        model: DistributedModelParallel,
        position: Position,
        epoch_steps: int,
        ranks: Ranks,
    ) -> None:
        """position: where the run goes on; a best value by another split or metric is none."""
        self._config, self._recipe, self._data, self._model, self._ranks = config, recipe, data, model, ranks
        self._every = config.every or epoch_steps
        before = position.best
        same = before is not None and (before.split, before.metric) == (config.split, config.metric)
        self.best = before if same else None
        self.measured = position.measured if same else 0

    def is_due(self, step: int) -> bool:
        """Whether the split is evaluated after `step` steps of training."""
        return step > self.measured and step % self._every == 0

    def is_best(self, step: int) -> bool:
        """Whether the model after `step` steps is the best so far."""
        return self.best is not None and self.best.step == step

    def steps_to_go(self, step: int) -> int:
        """From `step` to the next evaluation."""
        return self._every - step % self._every

    def evaluate(self, step: int, stopping: Stopping) -> None:
        """Scores all rows of the split with the model as it is after `step` steps. Where the ranks are told to stop
        meanwhile, nothing is measured: the resumed run begins with it."""
        split, metric = self._config.split, self._config.metric
        try:
            scored = score_split(self._recipe, self._data, self._model, split, self._ranks, stopping)
        except AbandonedError:
            return
        value = measure(scored.label_N, scored.score_N, scored.user_N)[metric]
        self.measured = step
        found = "undefined"
        if value is not None:
            found = f"{value:.5f}"
            if self._config.better(value, self.best.value if self.best else None):
                self.best = Best(split, metric, value, step)
                found += ", the best so far"
        if self._ranks.first:
            print(f"step {step}  {split} {metric} {found}", flush=True)
