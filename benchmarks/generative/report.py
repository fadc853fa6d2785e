"""Compares several catalogs: `python -m benchmarks.generative.report FOLDER --reference NAME`.

FOLDER holds results of `python -m benchmarks.generative`, NAME.json or, for several seeds, NAME-seed0.json,
NAME-seed1.json and so on; NAME is what the report calls the catalog. Results that cannot be compared are refused: all
settings but the seed and the use of token weights, and the log, must be the same.

Writes FOLDER/report.md and FOLDER/report.png.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.generative.entries import OWN, Entry, read_entries
from benchmarks.generative.evaluation import gains_at
from benchmarks.generative.result import Ranks, Result
from benchmarks.sid_report.report import COLOURS, save_figure
from benchmarks.tables import difference_text, markdown_table, spread_text
from sidrec.io.files import write_text
from sidrec.metrics.resampling import SEED, multiplicities
from sidrec.schema import ContractError
from sidrec.study.intervals import LEVEL, RESAMPLES, Difference, interval

COMPARED = ("recall@10", "recall@100", "ndcg@10", "ndcg@100")  # with intervals
CONDITIONS = ("cpu", "cores", "commit")
LEGEND = """Item level: finding a SID that g items share is worth 1/g, the expected hit when one of them is shown. SID
level: finding it is worth 1, which flatters catalogs that collide. Shared SIDs: share of targets whose SID another
item has. Popularity: the items with most positives before test. Best epoch: the one whose weights were kept; if it is
the last that was allowed, the validation loss still fell. With several seeds: mean ± standard deviation. CPU seconds:
training and search."""


@dataclass(frozen=True)
class Command:
    """Tables and a picture of all results in a folder."""

    folder: tyro.conf.Positional[Path]
    """Folder with the JSONs, named after the catalogs' learners."""
    reference: str | None = None
    """Catalog that all others are compared with, user by user."""


def report(folder: Path, reference: str | None) -> str:
    """Writes FOLDER/report.md and FOLDER/report.png. Returns the text of report.md.

    Raises ContractError, before anything is written, for what `read_entries` refuses, a reference that is not there,
    and ranks of other users.
    """
    entries = read_entries(folder)
    first = entries[0].results[0]
    parts = [f"# Generative retrieval, {folder.resolve().name}", _conditions(entries), _table(entries), LEGEND]
    if reference is not None:
        parts.append(_compared(entries, reference))
    parts.append("![Recall and NDCG at 10 of every catalog](report.png)")
    text = "\n\n".join(parts) + "\n"
    draw_catalogs(folder / "report.png", f"{folder.resolve().name}, {first['test']['users']:,} users", entries)
    write_text(folder / "report.md", text)
    return text


def _conditions(entries: Sequence[Entry]) -> str:
    results = [result for entry in entries for result in entry.results]
    test, settings = results[0]["test"], results[0]["settings"]
    logs = ", ".join(dict.fromkeys(f"`{of['data']}`" for of in results))
    said = ", ".join(f"{name} {value}" for name, value in settings.items() if name not in OWN)
    distinct = {key: ", ".join(dict.fromkeys(str(of["conditions"][key]) for of in results)) for key in CONDITIONS}
    known = test["other_splits_reach_into_test_time"] or settings["protocol"] == "leave-one-out"
    return (
        f"Log of {logs}: {test['users']:,} users, one target each; {test['users_without_history']:,} more without a "
        f"history are left out. Nobody had liked {test['targets_never_liked_before']:,} of the targets before. Later "
        f"events of other users are {'known' if known else 'unknown'}. Settings: {said}. CPU {distinct['cpu']}, "
        f"{distinct['cores']} cores shared with other work; commit {distinct['commit']}."
    )


def _table(entries: Sequence[Entry]) -> str:
    popularity = entries[0].results[0]["metrics"]["popularity_item"]
    names = sorted(popularity, key=lambda name: (name.startswith("ndcg"), int(name.partition("@")[2])))
    rows = [
        [
            entry.label,
            len(entry.results),
            *(spread_text(entry.metric("item", name)) for name in names),
            spread_text(entry.metric("sid", "recall@10")),
            *_facts(entry.results),
        ]
        for entry in entries
    ]
    rows.append(["popularity", "", *(f"{popularity[name]:.4f}" for name in names), "", "", "", ""])
    header = ["item level", "seeds", *map(_short, names), "SID level R@10", "shared SIDs", "best epoch", "CPU s"]
    return markdown_table(header, rows)


def _facts(results: Sequence[Result]) -> list[str]:
    test = results[0]["test"]
    cpu = np.mean([sum(part["cpu"] for part in result["seconds"].values()) for result in results])
    best = ", ".join(str(result["training"]["best"]) for result in results)
    return [f"{test['targets_with_shared_sid'] / test['users']:.1%}", best, f"{cpu:.0f}"]


def _compared(entries: Sequence[Entry], name: str) -> str:
    by_name = {entry.name: entry for entry in entries}
    if name not in by_name:
        raise ContractError("--reference", f"one of {sorted(by_name)}", name)
    metrics = [metric for metric in COMPARED if metric in entries[0].results[0]["metrics"]["item"]]
    found = differences(entries, by_name[name], metrics)
    rows = [
        [entry.label, *(difference_text(found[entry.name][metric]) for metric in metrics)]
        for entry in entries
        if entry.name in found
    ]
    parts = []
    if found:
        parts = [
            f"Difference to {name}: mean over seeds, {LEVEL:.0%} interval of a paired bootstrap over users (it does "
            "not include the spread over seeds):",
            markdown_table(["item level", *map(_short, metrics)], rows),
        ]
    lacking = [entry.name for entry in entries if entry.ranks is None]
    if lacking:
        parts.append(f"No intervals where each user's ranks are missing (NAME.npz): {', '.join(lacking)}.")
    return "\n\n".join(parts)


def _short(metric: str) -> str:
    return metric.replace("recall", "R").replace("ndcg", "N")


def main() -> int:
    """Returns the exit status: 2, after one sentence, for what cannot be compared."""
    command = tyro.cli(Command, prog="python -m benchmarks.generative.report", description=__doc__)
    try:
        print(report(command.folder, command.reference))
    except (ContractError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


# Differences at the level of items, with intervals of a paired bootstrap over users.


def differences(entries: Sequence[Entry], reference: Entry, metrics: Sequence[str]) -> dict[str, dict[str, Difference]]:
    """Name -> metric -> how far the catalog is from the reference, mean over seeds.

    Users are drawn with replacement, the same draws for all catalogs, metrics and seeds; an interval says how far
    other users could move the difference, not other seeds. Catalogs without ranks are left out: all of them, if it is
    the reference that has none. Raises ContractError for ranks of other users than the reference's.
    """
    known = {of.name: of.ranks for of in entries if of.ranks is not None and of.name != reference.name}
    if reference.ranks is None or not known:
        return {}
    user_U = reference.ranks[0].user_U
    for name, seeds in {reference.name: reference.ranks, **known}.items():
        if not all(np.array_equal(of.user_U, user_U) for of in seeds):
            raise ContractError(f"ranks of {name}", f"the users of {reference.name}", "others")
    longest = reference.results[0]["settings"]["beam"]
    base_MU = _gains(reference.ranks, metrics, longest)
    moved_CMU = np.stack([_gains(seeds, metrics, longest) - base_MU for seeds in known.values()])
    chunks = multiplicities(len(user_U), RESAMPLES, SEED)
    resampled_CMR = np.concatenate([moved_CMU @ drawn_RU.T / len(user_U) for drawn_RU in chunks], axis=2)
    return {
        name: {
            metric: interval(float(moved_CMU[row, column].mean()), resampled_CMR[row, column])
            for column, metric in enumerate(metrics)
        }
        for row, name in enumerate(known)
    }


def _gains(seeds: Sequence[Ranks], metrics: Sequence[str], longest: int) -> np.ndarray:
    """float64 [M, U]: each user's item-level metrics, mean over seeds."""
    gains = [gains_at(of.rank_U, 1 / of.group_U, longest) for of in seeds]
    return np.stack([np.mean([of[metric] for of in gains], axis=0) for metric in metrics])


# Picture: recall and NDCG at 10 at the level of items, best catalog first, popularity as a line.

SHOWN = {"recall@10": "Recall@10", "ndcg@10": "NDCG@10"}


def draw_catalogs(path: Path, title: str, entries: Sequence[Entry]) -> None:
    """One panel per metric, one line per catalog, in the order given: the mean over seeds, and each seed pale."""
    popularity = entries[0].results[0]["metrics"]["popularity_item"]
    figure = Figure(figsize=(9, 1.5 + 0.32 * len(entries)), layout="constrained")
    panels = figure.subplots(1, len(SHOWN), sharey=True)
    for axes, (metric, name) in zip(panels, SHOWN.items(), strict=True):
        for line, entry in enumerate(entries):
            of = entry.metric("item", metric)
            axes.barh(line, of["mean"], height=0.6, color=COLOURS[0], alpha=0.3)
            axes.plot(of["values"], [line] * len(of["values"]), ".", color=COLOURS[0], alpha=0.5)
            axes.plot(of["mean"], line, "o", color=COLOURS[0])
        axes.axvline(popularity[metric], color=COLOURS[4], linestyle="--")
        axes.set_title(f"item-level {name}; dashed: popularity, {popularity[metric]:.4f}", fontsize="medium")
        axes.xaxis.set_major_locator(MaxNLocator(5))  # more labels would run into each other
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(entries)), [entry.label for entry in entries])
    panels[0].set_ylim(len(entries) - 0.5, -0.5)
    figure.suptitle(f"{title}: mean over seeds; pale: single seeds", fontsize="medium")
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main())
