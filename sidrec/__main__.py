"""`python -m sidrec COMMAND ...` is the console script without an activated environment."""

from sidrec.cli import main

raise SystemExit(main())
