"""A model with SIDs or content starts from a checkpoint of item kind hid: `start.grow`.

Tables and layers of the checkpoint are taken as they are. A layer that has more inputs than there keeps its weights on
the old inputs and reads the new ones with weight 0, as in Net2Net (arXiv 1511.05641). So the first step's scores are
the checkpoint's, and every new weight has a gradient, because its input is not 0. What the checkpoint lacks, SID tables
and layers inside the item representation, keeps its initial values.

Shapes: J stored places along an axis.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sidrec.checkpoint.stored_tables import StoredCheckpoint
from sidrec.checkpoint.tensor_shard import MODEL, TensorShard
from sidrec.config import ConfigError, Recipe
from sidrec.config.item import HidPart
from sidrec.data.dataset import Dataset
from sidrec.errors import CheckpointError
from sidrec.model.backbones import NamedInputs, named_inputs
from sidrec.model.ranker import Ranker, dense_names

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Key of a tensor -> type and shape."""


@dataclass(frozen=True)
class Widened:
    """A weight with more places along `axis` than the checkpoint's. places_J: where the stored ones go."""

    axis: int
    places_J: Tensor
    zero: bool

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[: self.axis], len(self.places_J), *shape[self.axis + 1 :])

    def fill(self, values: Tensor, stored: Tensor, zero: bool) -> None:
        """Copies what was stored to its places. zero: whether all other places become 0."""
        with torch.no_grad():
            if zero:
                values.zero_()
            values.index_copy_(self.axis, self.places_J.to(values.device), stored.to(values))


@dataclass
class Growth:
    """How the tensors of a larger model are filled from a checkpoint. Names are keys below `model/`.

    tables, layers: that the checkpoint lacks. renamed: name here -> name there. widened: name here -> how.
    """

    tables: frozenset[str]
    layers: frozenset[str]
    renamed: Mapping[str, str]
    widened: Mapping[str, Widened]
    _copies: list[Callable[[], None]] = field(default_factory=list)

    def expected(self, tensors: Shapes) -> Shapes:
        """What the checkpoint must have of these tensors of the larger model: by its own keys, in its own shapes."""
        found = {}
        for key, (dtype, shape) in tensors.items():
            name = key.removeprefix(f"{MODEL}/")
            if name not in self.layers:
                widened = self.widened.get(name)
                stored = widened.stored_shape(shape) if widened else shape
                found[f"{MODEL}/{self.renamed.get(name, name)}"] = dtype, stored
        return found

    def stored(self, shards: Iterable[TensorShard]) -> list[TensorShard]:
        """The shards to read for these shards of model or optimizer; `finish` then fills those of widened weights."""
        return [found for shard in shards for found in self._stored(shard)]

    def _stored(self, shard: TensorShard) -> list[TensorShard]:
        kind, _, rest = shard.key.partition("/")
        name, _, state = rest.partition("/")
        if name in self.layers:
            return []
        key = "/".join(filter(None, (kind, self.renamed.get(name, name), state)))
        widened = self.widened.get(name)
        if widened is None or not shard.shape:
            return [replace(shard, key=key)]
        shape = widened.stored_shape(shard.shape)
        values = torch.empty(shape, dtype=shard.values.dtype, device=shard.values.device)
        zero = widened.zero or kind != MODEL  # no optimizer has seen the new places
        self._copies.append(lambda: widened.fill(shard.values, values, zero))
        return [TensorShard(key, shape, (0,) * len(shape), values, shard.owned)]

    def finish(self) -> None:
        """Fills the widened weights, after the shards of `stored` were read."""
        for copy in self._copies:
            copy()
        self._copies.clear()

    def keys_here(self, keys: Iterable[str]) -> set[str]:
        """The checkpoint's keys under the names of the larger model."""
        there = {old: new for new, old in self.renamed.items()}
        found = set()
        for key in keys:
            kind, _, rest = key.partition("/")
            name, _, state = rest.partition("/")
            found.add("/".join(filter(None, (kind, there.get(name, name), state))))
        return found


def find_growth(found: StoredCheckpoint, recipe: Recipe, data: Dataset, tensors: Shapes) -> Growth:
    """tensors: of the larger model, as in a checkpoint.

    Raises ConfigError for an item kind in which no part equals the kind hid; CheckpointError for a checkpoint of
    another item kind, and for a backbone that cannot ignore new inputs.
    """
    before, item = found.recipe.model, recipe.model.item
    if before.item.kind != "hid":
        expected = "start.grow: expected a checkpoint of item kind hid"
        raise CheckpointError(f"{expected}, got {found.path} of kind {before.item.kind}")
    part = item.hid_part
    if part is None:
        raise ConfigError(
            "start.grow: expected an item kind with a feature that equals e_hid at the start and a history of HIDs, "
            f"got model.item.kind {item.kind}; sid_coord has one with the view hid or gate.start: hid_only, and with "
            "hid in history"
        )
    with torch.device("meta"):
        ranker = Ranker(recipe.model, data.sizes)
    larger = _inputs(recipe, data, ranker.item.features, ranker.item.width)
    renamed = _renamed(tensors, part)
    names = {key.removeprefix(f"{MODEL}/") for key in tensors}
    layers = {name for name in names if f"{MODEL}/{renamed.get(name, name)}" not in found.index.tensors}
    smaller = {wide.weight: wide for wide in _inputs(recipe, data, ("item", "history_hid"), 0)}
    widened = {
        f"backbone.{wide.weight}": _widened(wide, smaller[wide.weight], part)
        for wide in larger
        if len(wide.names) > len(smaller[wide.weight].names)
    }
    features = len(ranker.item.features) - 2
    if recipe.model.backbone.kind == "deepfm" and features:
        raise CheckpointError(
            f"{found.path}: start.grow: expected a backbone that can give new features the weight 0, got deepfm, whose "
            f"factorization machine has no weights, with {features} new feature(s)"
        )
    layers = {name for name in layers if name.startswith("item.")}
    return Growth(frozenset(data.tables.sid_tables), frozenset(layers), renamed, widened)


def _inputs(recipe: Recipe, data: Dataset, features: tuple[str, ...], width: int) -> list[NamedInputs]:
    model, sizes = recipe.model, data.sizes
    dense = dense_names(sizes.dense, width, len(sizes.stats_mean) if model.stats_as_dense else 0)
    return list(named_inputs(model.backbone, features, tuple(sizes.context_rows), dense, model.embedding_dim))


def _renamed(tensors: Shapes, part: HidPart) -> dict[str, str]:
    """The pooling of e_hid: name here -> name in a model of the kind hid."""
    here = f"item.{part.pooling}."
    names = [key.removeprefix(f"{MODEL}/") for key in tensors]
    return {name: f"item.pooling.{name.removeprefix(here)}" for name in names if name.startswith(here)}


def _widened(wide: NamedInputs, narrow: NamedInputs, part: HidPart) -> Widened:
    """e_hid is the feature `item` of a model of the kind hid."""
    place = {name: number for number, name in enumerate(wide.names)}
    here = [frozenset(part.feature if word == "item" else word for word in name) for name in narrow.names]
    return Widened(wide.axis, torch.tensor([place[name] for name in here]), wide.zero)
