"""Scripts that measure sidrec, and their recorded results."""

from pathlib import Path

RESULTS = Path(__file__).parent / "results"
