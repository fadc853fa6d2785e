"""One run, from catalog and log to the JSON.

E events, N items, U users with a target and a history, L levels.
"""

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from benchmarks.generative import result
from benchmarks.generative.evaluation import metrics_at, popularity_ranks, ranks_of
from benchmarks.generative.model import Trie
from benchmarks.generative.result import Measured, Ranks, Result, Settings
from benchmarks.generative.sequences import (
    NO_EVENT,
    Protocol,
    Sequences,
    Windows,
    check_leave_one_out,
    leave_one_out,
    log_split,
    read_sequences,
)
from benchmarks.generative.training import Tokens, train
from sidrec.schema import ContractError
from sidrec.sid.catalog import Catalog, load_catalog
from sidrec.study.results import conditions


def evaluate_catalog(catalog_path: Path, data: Path, out: Path, settings: Settings) -> None:
    """Trains, searches, writes `out`, with each user's rank in an .npz file, and prints the metrics.

    Skips a run that `out` already holds, with a message.

    Raises ContractError, before any training, for settings, a catalog or a log that cannot be evaluated.
    """
    settings.check()
    catalog = load_catalog(catalog_path)
    sequences = read_sequences(data)
    wanted = result.settings_hash(settings, catalog.fingerprint, data)
    if result.is_finished(out, wanted):
        print(f"{out}: already holds this run")
        return
    protocol = _protocol(catalog_path, sequences, settings)
    torch.set_num_threads(settings.threads)
    facts = conditions()  # before training: the commit may move on meanwhile
    measured, ranks = _measure(catalog, sequences, protocol, settings)
    found: Result = {
        "settings_hash": wanted,
        "settings": asdict(settings),
        "catalog": {"path": str(catalog_path), "fingerprint": catalog.fingerprint, "items": len(catalog)},
        "data": str(data),
        "log_sha256": result.log_sha256(data),
        "conditions": facts,
        **measured,
    }
    result.save(out, found, ranks)
    print(_table(measured["metrics"]))


def _protocol(catalog: Path, sequences: Sequences, settings: Settings) -> Protocol:
    if settings.protocol == "log-split":
        return log_split(sequences, settings.validation_share)
    protocol = leave_one_out(sequences)
    check_leave_one_out(catalog, sequences, protocol)
    return protocol


def _measure(catalog: Catalog, sequences: Sequences, protocol: Protocol, settings: Settings) -> tuple[Measured, Ranks]:
    row_E = _rows(catalog, sequences.item_E)
    begin_U = sequences.offsets[:-1]
    windows = {
        "training": Windows.over(begin_U, protocol.train_end_U, settings.history),
        "validation": Windows.before(begin_U, protocol.validation_U, settings.history),
        "test": Windows.before(begin_U, protocol.test_U, settings.history),
    }
    for name, part in windows.items():
        if not len(part):
            raise ContractError("log", f"users with an event and one before it for {name}", "none")
    trie, tokens = Trie.of(catalog.codes_NL), _tokens(catalog, row_E, settings)
    started = _clocks()
    model, journal = train(catalog.codebook_sizes, tokens, windows["training"], windows["validation"], settings)
    trained = _clocks()
    rank_U = ranks_of(model, trie, tokens.codes_EL, trie.sid_N[row_E], windows["test"], settings.beam)
    searched = _clocks()
    target_U = row_E[windows["test"].begin_W + windows["test"].length_W - 1]
    user_U = sequences.user_U[sequences.user_of_event()[windows["test"].begin_W]]
    count_N = np.bincount(row_E[protocol.known_E], minlength=len(catalog))
    group_U = trie.group_S[trie.sid_N[target_U]]
    popularity_U = popularity_ranks(count_N, target_U, settings.beam)
    everybody = np.ones(len(target_U))
    measured: Measured = {
        "test": _test_facts(sequences, protocol, target_U, count_N, group_U),
        "training": {**asdict(journal), "sequences": {name: len(part) for name, part in windows.items()}},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": {"train": _between(started, trained), "search": _between(trained, searched)},
        "metrics": {
            "item": metrics_at(rank_U, 1 / group_U, settings.beam),
            "sid": metrics_at(rank_U, everybody, settings.beam),
            "popularity_item": metrics_at(popularity_U, everybody, settings.beam),
        },
    }
    return measured, Ranks(user_U, rank_U.astype(np.int32), group_U.astype(np.int32))


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _between(first: tuple[float, float], second: tuple[float, float]) -> dict[str, float]:
    return {"wall": round(second[0] - first[0], 1), "cpu": round(second[1] - first[1], 1)}


def _rows(catalog: Catalog, item_E: np.ndarray) -> np.ndarray:
    row_E = np.searchsorted(catalog.item_ids_N, item_E)
    missing_E = catalog.item_ids_N[np.minimum(row_E, len(catalog) - 1)] != item_E
    if missing_E.any():
        got = f"none for {len(np.unique(item_E[missing_E]))} items, {item_E[missing_E][0]} first"
        raise ContractError("catalog", "a SID for every item that somebody liked", got)
    return row_E


def _tokens(catalog: Catalog, row_E: np.ndarray, settings: Settings) -> Tokens:
    weights_EL = None
    if settings.token_weights and catalog.weights_NL is not None:
        if (catalog.weights_NL < 0).any():
            raise ContractError("catalog, weights", "token weights of at least 0", catalog.weights_NL.min())
        weights_EL = torch.from_numpy(catalog.weights_NL[row_E])
    return Tokens(torch.from_numpy(catalog.codes_NL[row_E]), weights_EL)


def _test_facts(
    sequences: Sequences, protocol: Protocol, target_U: np.ndarray, count_N: np.ndarray, group_U: np.ndarray
) -> dict[str, int | bool]:
    with_target = int((protocol.test_U != NO_EVENT).sum())
    return {
        "users": len(target_U),
        "users_without_history": with_target - len(target_U),
        "targets_never_liked_before": int((count_N[target_U] == 0).sum()),
        "targets_with_shared_sid": int((group_U > 1).sum()),
        "other_splits_reach_into_test_time": sequences.overlap,
    }


def _table(metrics: dict[str, dict[str, float]]) -> str:
    names = list(metrics["item"])
    lines = ["".join(f"{word:>12}" for word in ("", *metrics))]
    lines += ["".join([f"{name:>12}", *(f"{part[name]:12.4f}" for part in metrics.values())]) for name in names]
    return "\n".join(lines)
