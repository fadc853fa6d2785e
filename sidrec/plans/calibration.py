"""What each kind of work costs on this machine, fitted to plans that were measured here; and the file that keeps it.

Shapes: W ranks, K kinds of work, N measured plans.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from scipy.optimize import nnls

from sidrec.config import ConfigError
from sidrec.plans.work import KINDS, NO_PLANS
from sidrec.schema import ContractError, read_json
from sidrec.sentence import place, short_repr

VERSION = 4
ROUNDS = 20  # of choosing each plan's slowest rank anew; it settles within a few
RIDGE = 1e-3  # of a plan's time, on each kind's share: decides between kinds that always come together


@dataclass(frozen=True)
class Sample:
    """A plan that was measured, beside the others of its bench. work_WK: float64, what it makes each rank do. step:
    milliseconds."""

    workload: str
    bench: str
    plan: str
    work_WK: np.ndarray
    step: float


@dataclass(frozen=True)
class Fit:
    """milliseconds: kind of work -> milliseconds per unit. samples: plans it was fitted to, of these workloads.

    error: median of |predicted - measured| / measured over these plans. spread: the same where each bench's own factor
    is taken out, which no plan changes: how far apart two plans of a model must be to be told apart.
    """

    milliseconds: dict[str, float]
    samples: int
    workloads: list[str]
    error: float
    spread: float = 0.0

    def costs(self) -> np.ndarray:
        """float64 [K]: milliseconds per unit of each kind."""
        return np.array([self.milliseconds.get(kind, 0.0) for kind in KINDS])

    def step(self, work_WK: np.ndarray) -> float:
        """Expected milliseconds of a step: the slowest rank's."""
        return float((work_WK @ self.costs()).max())


@dataclass(frozen=True)
class Calibration:
    """worlds: number of ranks -> fit, as ranks share cores and links. conditions: machine, commit, files fitted to."""

    version: int
    device: str
    worlds: dict[int, Fit]
    conditions: dict[str, Any] = field(default_factory=dict)

    def fit_for(self, world: int) -> Fit:
        """The fit of that world, or of the nearest one that was measured."""
        return self.worlds[min(self.worlds, key=lambda measured: (abs(np.log(measured / world)), measured))]


def fit(samples: Sequence[Sample]) -> Fit:
    """Non-negative least squares of relative errors (Lawson & Hanson 1974).

    A step takes what its slowest rank's work costs. Which rank that is depends on the costs: found in turns. What no
    plan changes is one unknown per bench, so that a model whose dense layers take long says nothing about plans, nor an
    hour in which the machine was slow; the costs of dense layers and of a step at all are then fitted to these. Raises
    ConfigError without samples.
    """
    if not samples:
        raise ConfigError("calibration: expected at least one measured plan, got none")
    benches = sorted({sample.bench for sample in samples})
    step_N = np.array([sample.step for sample in samples])
    most_K = np.max([sample.work_WK.max(axis=0) for sample in samples], axis=0)
    scale_K = np.where(most_K > 0, most_K, 1.0)
    cost_K = np.full(len(KINDS), step_N.mean()) / scale_K
    for _ in range(ROUNDS):
        slowest_NK = np.stack([sample.work_WK[np.argmax(sample.work_WK @ cost_K)] for sample in samples])
        found_K = _costs(samples, benches, slowest_NK, scale_K)
        if np.allclose(found_K, cost_K, rtol=1e-6, atol=0):
            break
        cost_K = found_K
    predicted_N = np.array([(sample.work_WK @ cost_K).max() for sample in samples])
    return Fit(
        milliseconds=dict(zip(KINDS, cost_K.tolist(), strict=True)),
        samples=len(samples),
        workloads=sorted({sample.workload for sample in samples}),
        error=float(np.median(np.abs(predicted_N - step_N) / step_N)),
        spread=_spread(samples, benches, predicted_N / step_N),
    )


def _spread(samples: Sequence[Sample], benches: Sequence[str], ratio_N: np.ndarray) -> float:
    """ratio_N: predicted to measured steps."""
    bench_N = np.array([sample.bench for sample in samples])
    factor_N = np.select(
        [bench_N == name for name in benches], [np.median(ratio_N[bench_N == name]) for name in benches]
    )
    return float(np.median(np.abs(ratio_N / factor_N - 1)))


def _costs(samples: Sequence[Sample], benches: Sequence[str], work_NK: np.ndarray, scale_K: np.ndarray) -> np.ndarray:
    """float64 [K] milliseconds per unit, for the work of each plan's slowest rank. scale_K: most work of a kind."""
    step_N = np.array([sample.step for sample in samples])
    of_plans = [k for k, kind in enumerate(KINDS) if kind not in NO_PLANS]
    of_none = [k for k, kind in enumerate(KINDS) if kind in NO_PLANS]
    bench_NJ = np.array([[sample.bench == name for name in benches] for sample in samples], dtype=float)
    relative = np.hstack([work_NK[:, of_plans], bench_NJ]) / step_N[:, None]
    ridge = np.diag(np.append(RIDGE * scale_K[of_plans] / step_N.mean(), np.zeros(len(benches))))
    found, _ = nnls(np.vstack([relative, ridge]), np.append(np.ones(len(samples)), np.zeros(len(ridge))))
    cost_K = np.zeros(len(KINDS))
    cost_K[of_plans], rest_J = found[: len(of_plans)], found[len(of_plans) :]
    first = [next(n for n, sample in enumerate(samples) if sample.bench == name) for name in benches]
    weight_J = 1 / np.array([step_N[bench_NJ[:, j] > 0].min() for j in range(len(benches))])
    cost_K[of_none], _ = nnls(work_NK[np.ix_(first, of_none)] * weight_J[:, None], rest_J * weight_J)
    return cost_K


_CALIBRATION: TypeAdapter[Calibration] = TypeAdapter(Calibration)


def is_calibration(path: Path) -> bool:
    """Whether a file is a calibration of any version. Raises ContractError for what is no JSON."""
    raw = read_json(path, "a calibration")
    return isinstance(raw, dict) and {"version", "device", "worlds"} <= set(raw)


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Writes the file, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(asdict(calibration), indent=1) + "\n")
    partial.replace(path)


def load_calibration(path: Path, device: str) -> Calibration:
    """Reads a calibration file. Raises ConfigError for what is not one, or is one of another device."""
    try:
        raw = read_json(path, "a calibration")
    except ContractError as error:
        raise ConfigError(f"{error}") from None
    if isinstance(raw, dict) and raw.get("version") != VERSION:
        raise ConfigError(f"{path}: expected a calibration of version {VERSION}, got {short_repr(raw.get('version'))}")
    try:
        calibration = _CALIBRATION.validate_python(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = place(first["loc"]) or "all of it"
        got = short_repr(first["input"])
        raise ConfigError(f"{path}: expected a calibration, {where}: {first['msg']}, got {got}") from None
    if calibration.device != device:
        raise ConfigError(f"{path}: expected a calibration of {device}, got one of {calibration.device}")
    if not calibration.worlds:
        raise ConfigError(f"{path}: expected a calibration of at least one world, got none")
    return calibration
