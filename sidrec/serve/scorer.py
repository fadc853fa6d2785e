"""Scores candidates of a user, and rows, from a bundle.

    scorer = Scorer("bundle")
    ranked = scorer.rank(user="u7", candidates=["B01", "B02"], history=["B09"], statistics={"stat_clicks": [3, 0]})
    ranked.score_C                  # probabilities, in the order of the candidates

Needs numpy and onnxruntime alone. Items and users that the bundle does not know are scored as unknown ones, and
counted. Statistics are the items' counts as of now, dense columns and other ids are those of the log.

Shapes: C candidates, T history positions, B golden rows.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray

from sidrec.errors import ContractError
from sidrec.io import places
from sidrec.serve.bundle import Bundle, Description
from sidrec.serve.calibration import probability
from sidrec.serve.golden import GOLDEN, GoldenRows
from sidrec.serve.id_lookup import UNKNOWN, Texts
from sidrec.serve.versions import version_folder

ITEM, USER = "item_id", "user_id"
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
SourceId = str | int
Columns = Mapping[str, ArrayLike]
ROWS, REQUEST, EXPLAIN = "rows.onnx", "request.onnx", "explain.onnx"
NOBODY = np.full(1, UNKNOWN, dtype=np.int64)
"""Ids of a user or a context column that is not given. Not looked up: an empty text may be an id of the column."""


@dataclass(frozen=True)
class Ranked:
    """score_C: the model's own probabilities, in the order of the candidates. calibrated_C: calibrated ones, where the
    bundle has a map for it. version: of the bundle that gave them. explained_C: if asked for, what `Model.explain`
    gives."""

    score_C: Floats
    version: str
    unknown_candidates: int
    unknown_history: int
    unknown_user: bool
    calibrated_C: Floats | None = None
    explained_C: Mapping[str, Floats] = field(default_factory=dict)

    def best(self, count: int | None = None) -> Ints:
        """Places of the candidates, best first; the earlier of equal ones first."""
        return np.argsort(-self.score_C, kind="stable")[:count]


@dataclass
class Counters:
    """What was asked for and not known, since the scorer was opened."""

    candidates: int = 0
    unknown_candidates: int = 0
    history: int = 0
    unknown_history: int = 0
    users: int = 0
    unknown_users: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, found: Ranked, history: int) -> None:
        """Counts an answer. history: items that its history had."""
        with self._lock:
            self.candidates += len(found.score_C)
            self.unknown_candidates += found.unknown_candidates
            self.history += history
            self.unknown_history += found.unknown_history
            self.users += 1
            self.unknown_users += found.unknown_user


class Scorer:
    """An opened bundle. Any number of threads may call it; `reload` puts a new version in use between two calls.

    model: the version in use. Who asks it several things takes it once, so that a reload does not come between.
    """

    def __init__(self, bundle: places.Place | str, threads: int = 1, check: bool = True) -> None:
        """bundle: what `sidrec export` wrote, a folder or its URI. threads: of one call. check: compare files with
        checksums.

        Raises ContractError, as `Bundle` does.
        """
        self._path, self._threads = places.place(bundle), threads
        self.model = Model(Bundle(self._path, check), threads)
        self.counters = Counters()

    def reload(self, check: bool = True) -> bool:
        """Opens the version that the bundle's link names, if it is another one. Returns whether it was.

        Raises ContractError, and keeps the version in use, if the new one cannot be opened.
        """
        if version_folder(self._path) == self.model.bundle.folder:  # a version never changes
            return False
        self.model = Model(Bundle(self._path, check), self._threads)
        return True

    def rank(
        self,
        user: SourceId | None,
        candidates: Sequence[SourceId],
        history: Sequence[SourceId] = (),
        statistics: Columns | None = None,
        dense: Columns | None = None,
        context: Mapping[str, SourceId | Sequence[SourceId]] | None = None,
        explain: bool = False,
    ) -> Ranked:
        """Probabilities of a user's candidates.

        user: None for an unknown one. history: items that the user liked, oldest first. statistics: column -> a count
        for each candidate. dense: column -> a number, or one for each candidate. context: other id columns of the log;
        left out: unknown. explain: also say what each score comes from, which takes longer. Raises ContractError naming
        the column that is missing, unknown or of another length, and for a version that explains nothing.
        """
        found = self.model.rank(user, candidates, history, statistics, dense, context, explain)
        self.counters.add(found, len(history))
        return found


class Model:
    """An opened version: its arrays and graphs."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        """Raises ContractError if a golden row gets another logit here than the trained model gave it."""
        self.bundle = bundle
        self._threads = threads
        self._graphs = {name: _Graph(bundle.folder / name, threads) for name in (ROWS, REQUEST)}
        if (golden := GoldenRows.of(bundle)) is not None:
            self._replay(golden)

    def _replay(self, golden: GoldenRows) -> None:
        requests = [self.run(REQUEST, inputs) for inputs in golden.request_inputs(self.bundle)]
        found = {ROWS: self.run(ROWS, golden.row_inputs(self.bundle)), REQUEST: np.concatenate(requests)}
        for graph, logit_B in found.items():
            difference = np.abs(logit_B - golden.logit_B[: len(logit_B)]).max()
            if not difference <= self.description.tolerance:
                raise ContractError(
                    f"{self.bundle.folder / graph}, rows of {GOLDEN}",
                    f"logits within {self.description.tolerance:g} of the trained model's, as where it was exported",
                    f"a difference of {difference:.3g} with onnxruntime {onnxruntime.__version__} on this processor",
                )

    @property
    def version(self) -> str:
        """Its name."""
        return self.bundle.version

    @property
    def description(self) -> Description:
        """What it says of itself."""
        return self.bundle.description

    @property
    def id_columns(self) -> list[str]:
        """The id columns besides the user's and the item's."""
        return [column.name for column in self.description.context if column.name not in (USER, ITEM)]

    def _check_columns(self, statistics: Columns, dense: Columns, context: Mapping[str, Any]) -> None:
        """Raises ContractError unless these are the model's columns."""
        about = self.bundle.description
        _check_names("statistics", statistics, about.stats)
        _check_names("dense", dense, about.dense)
        if unknown := sorted(context.keys() - set(self.id_columns)):
            raise ContractError("context", f"some of the columns {self.id_columns}", unknown)

    def rank(
        self,
        user: SourceId | None,
        candidates: Sequence[SourceId],
        history: Sequence[SourceId] = (),
        statistics: Columns | None = None,
        dense: Columns | None = None,
        context: Mapping[str, SourceId | Sequence[SourceId]] | None = None,
        explain: bool = False,
    ) -> Ranked:
        """As `Scorer.rank`."""
        statistics, dense, context = statistics or {}, dense or {}, context or {}
        self._check_columns(statistics, dense, context)
        about, count = self.bundle.description, len(candidates)
        item_CT = self.ids(ITEM, [*candidates, *history])
        candidate_C, history_T = item_CT[:count], item_CT[count:]
        latest_T = history_T[-about.history_length :]
        inputs: dict[str, NDArray[Any]] = {
            **self.bundle.of_request(candidate_C, latest_T),
            "stats": _columns("statistics", statistics, about.stats, count),
            "dense": _columns("dense", dense, about.dense, count),
        }
        unknown_user = False
        for column in about.context:
            if column.name == ITEM:
                rows = candidate_C
            else:
                given = user if column.name == USER else context.get(column.name)
                rows = NOBODY if given is None else self.ids(column.name, _listed(given))
                unknown_user |= column.name == USER and not rows.any()
            inputs[f"context_{column.name}"] = self._context(column.name, column.lists, rows, count)
        logit_C = self.run(REQUEST, inputs)
        explained_C = {}
        if explain:
            history_1T = inputs["history"]
            own_CT = np.broadcast_to(history_1T, (count, history_1T.shape[1]))
            explained_C = self.explain(candidate_C, {**inputs, "history": own_CT})
        return Ranked(
            score_C=probability(logit_C),
            version=self.bundle.version,
            unknown_candidates=int((candidate_C == UNKNOWN).sum()),
            unknown_history=int((history_T == UNKNOWN).sum()),
            unknown_user=unknown_user,
            calibrated_C=self.calibrated(logit_C),
            explained_C=explained_C,
        )

    def explain(self, item_B: Ints, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Floats]:
        """Name -> what explains each row's score: what of gate, alignment and weight_GRANULARITY the model has.

        item_B: the targets. inputs: of the graph of rows. gate and weights are NaN for an item without a SID. Raises
        ContractError for a version that explains nothing.
        """
        about = self.description.explained
        if not about.columns:
            raise ContractError(
                self.bundle.folder,
                "a version with a gate, an alignment or weights of granularities, to explain scores",
                "one whose item kind has none of them",
            )
        found: dict[str, Floats] = {}
        if about.outputs:
            found |= zip(about.outputs, self._explaining(inputs), strict=True)
        if about.granularities:
            weight_BG = self.bundle.weights_of(item_B)
            found |= {name: weight_BG[:, place] for place, name in enumerate(about.columns[len(about.outputs) :])}
        return found

    @cached_property
    def _explaining(self) -> "_Graph":
        return _Graph(self.bundle.folder / EXPLAIN, self._threads)

    def calibrated(self, logit_N: Floats) -> Floats | None:
        """Calibrated probabilities; None in a version without a map for them."""
        calibration = self.description.calibration
        return None if calibration is None else calibration(logit_N)

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Floats:
        """Logits of a graph, rows.onnx or request.onnx; inputs that it does not read are left out."""
        return self._graphs[graph](inputs)[0]

    def ids(self, column: str, source: Sequence[SourceId]) -> Ints:
        """Ids of source ids; UNKNOWN for those that the bundle does not have. Without an index they are numbers."""
        lookup = self.bundle.ids.get(column)
        if lookup is not None:
            return lookup.rows(Texts.of([str(each) for each in source]))
        try:
            found = np.array([int(each) for each in source], dtype=np.int64)
        except (ValueError, OverflowError):
            raise ContractError(
                f"ids of {column}", "whole numbers, as the bundle has no index of them", source
            ) from None
        known = self.known_ids(column)
        return np.where((found > UNKNOWN) & (found < known), found, UNKNOWN)

    def known_ids(self, column: str) -> int:
        """The largest id of a column and one."""
        return self.bundle.description.items if column == ITEM else len(self.bundle.context[column])

    def _context(self, column: str, lists: bool, rows: Ints, count: int) -> Floats:
        """The column's vectors, [C, D]: a row for each candidate, or one for all."""
        store = self.bundle.context[column]
        if lists:
            known = rows[rows > UNKNOWN]
            return np.broadcast_to(store.means(known, np.array([len(known)])), (count, store.width))
        if len(rows) not in (1, count):
            raise ContractError(f"context, {column}", f"one id, or {count:,} of them", f"{len(rows):,}")
        return np.broadcast_to(store.take(rows), (count, store.width))


class _Graph:
    """A graph of ONNX."""

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._inputs = [each.name for each in self._session.get_inputs()]

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> list[Floats]:
        """Its outputs; inputs that it does not read are left out."""
        found: list[Floats] = self._session.run(None, {name: inputs[name] for name in self._inputs})
        return found


def _listed(given: SourceId | Sequence[SourceId]) -> list[SourceId]:
    return [given] if isinstance(given, str | int) else list(given)


def _check_names(what: str, given: Mapping[str, Any], wanted: Sequence[str]) -> None:
    missing, unknown = [name for name in wanted if name not in given], sorted(given.keys() - set(wanted))
    if missing or unknown:
        raise ContractError(what, f"the columns {list(wanted)}", f"missing {missing}, unknown {unknown}")


def _columns(what: str, given: Mapping[str, ArrayLike], names: Sequence[str], count: int) -> Floats:
    """The columns side by side, float32 [C, number of columns]. Raises ContractError."""
    made = np.empty((count, len(names)), dtype=np.float32)
    for place, name in enumerate(names):
        values = np.asarray(given[name], dtype=np.float32)
        if values.shape not in ((), (count,)):
            raise ContractError(f"{what}, {name}", f"one number, or {count:,} of them", f"the shape {values.shape}")
        made[:, place] = values
    if not np.isfinite(made).all():
        bad = names[int(np.argmax(~np.isfinite(made).all(axis=0)))]
        raise ContractError(f"{what}, {bad}", "finite numbers", "others")
    return made
