"""`sidrec bench plans | calibrate | page`: measures plans, fits costs to what was measured, draws a result again."""

from collections.abc import Sequence
from pathlib import Path

from sidrec.bench import calibrate, plans_command
from sidrec.bench.page import write_page
from sidrec.bench.result import load_bench
from sidrec.config import ConfigError

HELP = """usage: sidrec bench COMMAND ...

  plans SUBJECT [options]         measure sharding plans on the ranks at hand
  calibrate BENCH.json... [...]   fit the planner's costs to plans that were measured
  page BENCH.json [OUT.html]      draw the page of a result again

sidrec bench plans --help and sidrec bench calibrate --help say more."""


def main(argv: Sequence[str]) -> None:
    """Runs one of them. Raises what it raises, ConfigError for an unknown one."""
    match list(argv):
        case [] | ["-h" | "--help", *_] | ["page", "-h" | "--help", *_]:
            print(HELP)
        case ["plans", *words]:
            plans_command.main(words)
        case ["calibrate", *words]:
            calibrate.main(words)
        case ["page", bench] | ["page", bench, _] as given:
            path = Path(bench)
            write_page(load_bench(path), Path(given[2]) if len(given) == 3 else path.with_suffix(".html"))
        case given:
            expected = "plans SUBJECT, calibrate BENCH.json... or page BENCH.json [OUT.html]"
            raise ConfigError(f"sidrec bench: expected {expected}, got {' '.join(given)!r}")
