"""The matrix's report."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.reshard_matrix.runs import SAVED_AFTER, STEPS
from benchmarks.reshard_matrix.verdicts import TOLERANCE, Outcome, Verdict


def report_text(facts: Mapping[str, Any], verdicts: Sequence[Verdict]) -> str:
    """report.md. facts: the conditions."""
    counted = {kind: sum(found.outcome is kind for found in verdicts) for kind in Outcome}
    lines = [
        "# Checkpoints loaded by other plans",
        "",
        f"{len(verdicts):,} cases: saved after {SAVED_AFTER} steps, loaded by another plan and number of ranks, "
        f"trained for {STEPS - SAVED_AFTER} more. Losses equal those of the run that saved and went on, within "
        f"{TOLERANCE:g}, in {counted[Outcome.EQUAL]:,}; {counted[Outcome.CONVERTED]:,} go on from converted row-wise "
        f"Adagrad, as columns were cut differently; {counted[Outcome.WRONG]} are wrong.",
        "",
        *_wrong(verdicts),
        "| optimizer | cases | equal | converted | largest difference where equal |",
        "|---|---|---|---|---|",
        *(_optimizer(name, verdicts) for name in dict.fromkeys(found.run.plan.optimizer for found in verdicts)),
        "",
        *_pairs("sharding", [(found, _start(found).sharding, found.run.plan.sharding) for found in verdicts]),
        *_pairs("ranks", [(found, str(_start(found).world), str(found.run.plan.world)) for found in verdicts]),
        *_conversions([found for found in verdicts if found.outcome is Outcome.CONVERTED]),
        f"Conditions: {', '.join(f'{name} {value}' for name, value in facts.items())}.",
        "",
    ]
    return "\n".join(lines)


def _start(found: Verdict) -> Any:
    return found.run.start


def _wrong(verdicts: Sequence[Verdict]) -> list[str]:
    wrong = [found for found in verdicts if found.outcome is Outcome.WRONG]
    if not wrong:
        return []
    said = (f"* {found.run.start} -> {found.run.plan}: {found.run.refusal or found.difference}" for found in wrong)
    return ["Not as it should be:", "", *said, ""]


def _optimizer(name: str, verdicts: Sequence[Verdict]) -> str:
    own = [found for found in verdicts if found.run.plan.optimizer == name]
    equal = [found.difference or 0.0 for found in own if found.outcome is Outcome.EQUAL]
    converted = sum(found.outcome is Outcome.CONVERTED for found in own)
    return f"| {name} | {len(own)} | {len(equal)} | {converted} | {max(equal, default=0.0):.2g} |"


def _pairs(what: str, cases: Sequence[tuple[Verdict, str, str]]) -> list[str]:
    """Equal, converted and wrong cases by what saved (rows) and what loaded (columns)."""
    names = list(dict.fromkeys(saved for _, saved, _ in cases))
    lines = [f"Equal / converted / wrong, by {what} that saved (rows) and that loaded (columns):", ""]
    lines += [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row in names:
        cells = []
        for column in names:
            found = [verdict.outcome for verdict, saved, loaded in cases if (saved, loaded) == (row, column)]
            cells.append(" / ".join(str(found.count(kind)) for kind in Outcome))
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return [*lines, ""]


def _conversions(converted: Sequence[Verdict]) -> list[str]:
    if not converted:
        return []
    largest = max(found.difference or 0.0 for found in converted)
    between = max(found.between for found in converted)
    return [
        f"Where row-wise Adagrad was converted, losses differ from the run that saved by {largest:.2g} at most; two "
        f"runs of the two plans that were never interrupted differ by up to {between:.2g}.",
        "",
    ]
