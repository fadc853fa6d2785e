"""`python -m sidrec.train RECIPE [flags]`, as torchrun calls it: the same as `sidrec train`."""

import sys

from sidrec import cli

if __name__ == "__main__":
    sys.exit(cli.main(["train", *sys.argv[1:]]))
