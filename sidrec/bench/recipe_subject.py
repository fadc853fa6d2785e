"""A recipe as a subject: its ranker, on batches of its own log."""

from functools import partial
from itertools import islice

import torch
from torch import nn

from sidrec.bench.subject import Subject, same_under_every_plan
from sidrec.config import Recipe
from sidrec.model.ranker import Ranker
from sidrec.model.sizes import Sizes
from sidrec.parallel.process_group import Ranks
from sidrec.train.agreed_batches import agreed_batches
from sidrec.train.assembly import open_loader
from sidrec.train.data import open_data


def recipe_subject(recipe: Recipe, batches: int, ranks: Ranks) -> Subject:
    """A subject with the first `batches` train batches of the recipe, or all where the log has fewer.

    Raises ConfigError or ContractError on all ranks together, as training does.
    """
    data = open_data(recipe, ranks)
    loader = open_loader(recipe, data, "train", shuffle=True, ranks=ranks)
    count = min(batches, loader.steps)
    read = list(agreed_batches(islice(loader.batches(0), count), count, ranks))
    loader.close()
    optimizer, change = same_under_every_plan(recipe.optimizer)
    facts = {"batches": f"{count} per rank of {recipe.data.path}, split train"}
    return Subject(
        name=recipe.name,
        model=partial(_model, recipe, data.sizes),
        batches=read,
        rows_per_rank=max(1, recipe.data.batch_size // ranks.world),
        optimizer=optimizer,
        pipeline=recipe.parallel.pipeline,
        seed=recipe.seed,
        facts=facts | ({"optimizer": change} if change else {}),
    )


def _model(recipe: Recipe, sizes: Sizes) -> nn.Module:
    torch.manual_seed(recipe.seed)
    return Ranker(recipe.model, sizes)
