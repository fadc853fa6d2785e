"""The command line: one module per command, each imported when it is called."""

from sidrec.cli.dispatch import main as main
