"""A small recipe as a subject, on the ranks of a test."""

from pathlib import Path

from sidrec.bench.subject import Subject, recipe_subject
from sidrec.parallel.process_group import Ranks
from tests.small_log import small_recipe


def small_subject(folder: Path, ranks: Ranks, batches: int = 6, **sections: object) -> Subject:
    """folder: a small log's."""
    sections = {"optimizer": {"tables": {"kind": "adagrad", "lr": 0.1}}, **sections}
    return recipe_subject(small_recipe(folder, **sections), batches, ranks)
