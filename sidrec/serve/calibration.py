"""A monotone map from a model's logits to probabilities, as bundle.json holds it. Needs numpy alone.

Shapes: N rows, K knots.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["isotonic", "platt"]


@dataclass(frozen=True)
class Calibration:
    """split, rows, positives: what it was fitted on.

    platt: sigmoid(slope * logit + intercept), which keeps all ranks. isotonic: linear between the knots (logits,
    probabilities), constant beyond them: it makes ties, but never exchanges two rows.
    """

    kind: Kind
    split: str
    rows: int
    positives: int
    slope: float = 1.0
    intercept: float = 0.0
    logits: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()

    def __call__(self, logit_N: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities of logits."""
        wide_N = logit_N.astype(np.float64)
        if self.kind == "isotonic":
            return np.interp(wide_N, self.logits, self.probabilities).astype(np.float32)
        return probability(self.slope * wide_N + self.intercept)

    @classmethod
    def read(cls, raw: dict[str, Any] | None) -> "Calibration | None":
        """From bundle.json. Raises TypeError and KeyError for another structure."""
        if raw is None:
            return None
        return cls(**{**raw, "logits": tuple(raw["logits"]), "probabilities": tuple(raw["probabilities"])})


def probability(logit_N: NDArray[Any]) -> NDArray[np.float32]:
    """1 / (1 + exp(-logit))."""
    return np.exp(-np.logaddexp(0, -logit_N.astype(np.float64))).astype(np.float32)
