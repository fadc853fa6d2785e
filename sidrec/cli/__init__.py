"""The command line: one module per group of commands, imported when a command is called."""

from sidrec.cli.dispatch import main as main
