"""The rows of targets, and the page that is made from them and the recorded results."""

from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.results_page import recorded_comparison
from benchmarks.targets import computed
from benchmarks.targets.computed import Figures, Measured
from sidrec.config import load_mapping
from sidrec.config.section import section
from sidrec.io.files import read_json
from sidrec.study.definition import checked
from sidrec.study.results import RUNS_FILE

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/targets.md"
ROWS = Path(__file__).with_name("rows.yaml")

YES, NO, IN_PART = "yes", "no", "in part"
ASSERTED, NO_BOUND, NO_RESULT = "asserted by tests", "no bound set", "no recorded result"
HEAD = """\
# Targets and where we stand

Every target that sidrec has set itself, with the figure, its conditions and the command that makes it again. Figures
are read from recorded results; `python -m benchmarks.targets` writes this page. Unless a row says otherwise, CPU
figures are of one thread on a machine of two shared cores without a GPU. [low, high] are the lowest and highest round,
or a 95% interval; the bound is held against the median or mean, unless the target says "shown".
"""


@section
class Target:
    """One row of rows.yaml, which describes the keys."""

    target: str
    command: str = ""
    conditions: str = ""
    source: str | tuple[str, ...] = ()
    figures: dict[str, tuple[str, ...]] = field(default_factory=dict)
    compute: tuple[str | int, ...] = ()
    at_most: float | None = None
    at_least: float | None = None
    above: float | None = None
    shown_above: float | None = None
    not_shown_below: float | None = None
    format: str = "{:.2f}"
    asserted: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        """The recorded files."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def again(self) -> str:
        """The command that makes the figure again."""
        return self.command or f"pytest {' '.join(self.asserted)}"

    def measured(self) -> Figures:
        """The figures, from the recorded results; empty if there are none."""
        found = [_recorded(path) for path in self.sources]
        if not found:
            return {}
        source = found[0] if isinstance(self.source, str) else found
        if self.compute:
            name, *arguments = self.compute
            figures: Figures = getattr(computed, str(name))(source, *arguments)
            return figures
        return {name: _figure(source, keys) for name, keys in self.figures.items()}

    def keeps(self, found: Measured) -> bool | None:
        """Whether a figure keeps the bound; None without one."""
        low = -float("inf") if found.low is None else found.low
        high = float("inf") if found.high is None else found.high
        tests = {
            "at_most": lambda bound: found.value <= bound,
            "at_least": lambda bound: found.value >= bound,
            "above": lambda bound: found.value > bound,
            "shown_above": lambda bound: low > bound,
            "not_shown_below": lambda bound: high >= bound,
        }
        bounds = {name: getattr(self, name) for name in tests if getattr(self, name) is not None}
        return all(tests[name](bound) for name, bound in bounds.items()) if bounds else None

    def met(self) -> str:
        """Whether the target is met, in words."""
        if self.asserted:
            return ASSERTED
        kept = [self.keeps(found) for found in self.measured().values()]
        if not kept:
            return NO_RESULT
        if None in kept:
            return NO_BOUND
        return YES if all(kept) else f"{IN_PART}: {sum(map(bool, kept))} of {len(kept)}" if any(kept) else NO


def load_targets(path: Path = ROWS) -> dict[str, list[Target]]:
    """Topic -> its targets. Raises ConfigError that lists every mistake of a row."""
    return {
        topic: [checked(Target, row, f"{path}, {topic}", str(row.get("target", "a row"))) for row in rows]
        for topic, rows in load_mapping(path, "YAML file").items()
    }


@cache
def _recorded(path: str) -> Any:
    """A JSON file, or the comparison of a study's runs."""
    if path.endswith(RUNS_FILE):
        return recorded_comparison((ROOT / path).parent.name)
    return read_json(ROOT / path, "recorded results")


def _figure(source: Any, keys: Sequence[str]) -> Measured:
    for key in keys:
        source = source[key]
    if isinstance(source, Mapping):
        low, high = source["low"], source["high"]
        return Measured(next(iter(source.values())), low, high)
    return Measured(*source) if isinstance(source, list) else Measured(source)


def page(topics: Mapping[str, Sequence[Target]]) -> str:
    """The page as Markdown."""
    counts: dict[str, int] = {}
    parts = []
    for topic, targets in topics.items():
        parts += ["", f"## {topic}", "", "| target | met | figure | conditions | command |", "|---|---|---|---|---|"]
        for target in targets:
            met = target.met()
            kind = {YES: "met", NO: "not met"}.get(met, "met in part" if met.startswith(IN_PART) else met)
            counts[kind] = counts.get(kind, 0) + 1
            cells = (target.target, met, figures_text(target), _conditions(target), f"`{target.again}`")
            parts.append("| " + " | ".join(cells) + " |")
    summary = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return "\n".join([HEAD, f"{sum(counts.values())} targets: {summary}.", *parts]) + "\n"


def figures_text(target: Target) -> str:
    """The figures of a row, each with its range."""

    def one(found: Measured) -> str:
        value, low, high = (None if number is None else target.format.format(number) for number in found)
        return f"{value}" if low is None else f"{value} [{low}, {high}]"

    return ", ".join(f"{name} {one(found)}".strip() for name, found in target.measured().items())


def _conditions(target: Target) -> str:
    if not target.measured():
        return target.conditions
    commits = [commit for path in target.sources if (commit := _commit(_recorded(path), target.compute))]
    facts = [target.conditions, f"commit {', '.join(commits)}" if commits else ""]
    return "; ".join([fact for fact in facts if fact] + [f"`{path}`" for path in target.sources])


def _commit(source: Any, compute: Sequence[Any]) -> str | None:
    """The commit that a result names: that of the part which `compute` names, else of its top level or first part."""
    if not isinstance(source, Mapping):
        return None
    named = [source[word] for word in compute if isinstance(word, str) and word in source]
    places = [*named, source, *source.values()]
    for place in places:
        conditions = place.get("conditions", place) if isinstance(place, Mapping) else {}
        if isinstance(conditions, Mapping) and isinstance(conditions.get("commit"), str):
            return str(conditions["commit"])
    return None
