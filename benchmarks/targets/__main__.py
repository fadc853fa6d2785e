"""Targets and where we stand: docs/targets.md, made from recorded results.

    python -m benchmarks.targets [--check]       prints what is not met, and writes docs/targets.md

Rows are in `benchmarks/targets/rows.yaml`: add one there, then run this. --check writes nothing, and fails if the page
is not what would be written.
"""

import argparse
import sys
from collections.abc import Sequence

from benchmarks.targets.page import IN_PART, NO, NO_RESULT, PAGE, figures_text, load_targets, page
from sidrec.io.files import write_text


def main(argv: Sequence[str]) -> int:
    """Returns the exit status: 1 if --check finds another page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.targets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="compare with the page instead of writing it")
    arguments = parser.parse_args(argv)
    topics = load_targets()
    for target in (target for targets in topics.values() for target in targets):
        met = target.met()
        if met in (NO, NO_RESULT) or met.startswith(IN_PART):
            print(f"{met}: {target.target}. {figures_text(target)}")
    if not arguments.check:
        write_text(PAGE, page(topics))
        return 0
    if PAGE.exists() and PAGE.read_text() == page(topics):
        return 0
    print(f"{PAGE}: expected another page; run python -m benchmarks.targets", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
