"""Our reader of Criteo's .npy files beside TorchRec's own: equal batches, equal losses; shuffled, every row once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchrec.datasets.criteo import DEFAULT_CAT_NAMES
from torchrec.datasets.utils import Batch
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from data_prep.criteo import CriteoCommand
from sidrec.data import criteo
from sidrec.data.criteo import CriteoBatches, criteo_paths
from sidrec.data.criteo_files import Stage
from tests.data.criteo_npy import torchrec_reader, write_days
from tests.data_prep.criteo_text import random_lines, write


def assert_equal_batches(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dense_features.equal(theirs.dense_features)
        assert ours.labels.dtype == theirs.labels.dtype
        assert ours.labels.equal(theirs.labels)
        a, b = ours.sparse_features, theirs.sparse_features
        assert a.keys() == b.keys()
        assert a.values().dtype == b.values().dtype
        assert a.values().equal(b.values())
        assert a.lengths().equal(b.lengths())
        assert a.offsets().equal(b.offsets())
        assert (a.stride(), a.length_per_key(), a.offset_per_key()) == (
            b.stride(),
            b.length_per_key(),
            b.offset_per_key(),
        )
        assert a["cat_25"].values().equal(b["cat_25"].values())


@pytest.mark.parametrize("stage", ["train", "val", "test"])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(
    ("rows", "batch_size", "world_size"),
    [
        ([100], 10, 1),
        ([103], 10, 1),  # one smaller batch at the end
        ([64, 31, 5], 8, 2),  # batches across files; a last batch of 4 rows for each rank
        ([97], 8, 4),  # one row left for four ranks: the first rank's last batch becomes larger
        ([66, 33], 8, 4),
        ([70], 33, 1),
    ],
)
def test_batches_in_order_equal_torchrecs(
    tmp_path: Path,
    rows: list[int],
    batch_size: int,
    world_size: int,
    drop_last: bool,
    stage: Stage,
) -> None:
    paths = write_days(tmp_path, rows)
    for rank in range(world_size):
        ours = CriteoBatches(stage, *paths, batch_size, rank, world_size, drop_last)
        theirs = torchrec_reader(stage, *paths, batch_size, rank, world_size, drop_last)
        assert_equal_batches(list(ours), list(theirs))
        assert len(ours) == len(theirs) == len(list(ours))


@pytest.mark.parametrize("sparse", [np.int32, np.int64])
def test_hashes_and_both_id_types(tmp_path: Path, sparse: type) -> None:
    paths = write_days(tmp_path, [50, 20], sparse, largest_id=2**31 - 1)
    hashes = list(range(3, 29))
    ours = CriteoBatches("train", *paths, 16, 0, 1, hashes=hashes, table_rows=hashes)
    theirs = torchrec_reader("train", *paths, 16, 0, 1, hashes=hashes)
    assert_equal_batches(list(ours), list(theirs))


@pytest.mark.parametrize("rows", [[5000], [37, 2048, 900]])
@pytest.mark.parametrize("world_size", [1, 3])
def test_shuffled_epochs_hold_every_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[int], world_size: int
) -> None:
    monkeypatch.setattr(criteo, "CHUNK_ROWS", 16)
    monkeypatch.setattr(criteo, "WINDOW_CHUNKS", 8)
    paths = write_days(tmp_path, rows)
    together = [np.concatenate([np.load(path) for path in kind]) for kind in paths]
    epochs = []
    for epoch in (0, 1, 0):
        order: list[int] = []
        for rank in range(world_size):
            batches = CriteoBatches("train", *paths, 64, rank, world_size, shuffle_training_set=True)
            batches.seek(epoch)
            for batch in batches:
                row_B = batch.dense_features[:, 0].long().numpy()
                order += row_B.tolist()
                np.testing.assert_array_equal(batch.dense_features, together[0][row_B])
                np.testing.assert_array_equal(batch.sparse_features.values().view(26, -1).T, together[1][row_B])
                np.testing.assert_array_equal(batch.labels, together[2][row_B, 0])
        assert sorted(order) == list(range(sum(rows)))
        epochs.append(order)
    assert epochs[0] == epochs[2] != epochs[1]
    steps = np.diff(epochs[0])
    assert (steps == 1).mean() < 0.1, "neighbours in the file are not neighbours in the epoch"


def test_shuffled_batches_mix_the_rows_of_each(tmp_path: Path) -> None:
    paths = write_days(tmp_path, [64])
    rows = [b.dense_features[:, 0].tolist() for b in CriteoBatches("train", *paths, 32, 0, 1, shuffle_batches=True)]
    assert [sorted(batch) for batch in rows] == [list(range(32)), list(range(32, 64))]
    assert rows[0] != sorted(rows[0])


@pytest.mark.parametrize("shuffle", [False, True])
def test_workers_and_seeking_change_nothing(tmp_path: Path, shuffle: bool) -> None:
    paths = write_days(tmp_path, [90, 47])
    batches = CriteoBatches("train", *paths, 16, 0, 1, shuffle_training_set=shuffle)
    batches.seek(3)
    straight = list(batches)
    loader = DataLoader(batches, batch_size=None, num_workers=2, persistent_workers=True)
    assert_equal_batches(list(loader), straight)
    batches.seek(3, 5)
    assert_equal_batches(list(batches), straight[5:])
    assert_equal_batches(list(loader), straight[5:])


def losses(batches: Any) -> list[float]:
    torch.manual_seed(0)
    tables = [
        EmbeddingBagConfig(name=f"table_{name}", embedding_dim=8, num_embeddings=300, feature_names=[name])
        for name in DEFAULT_CAT_NAMES
    ]
    model = DLRM(EmbeddingBagCollection(tables=tables), 13, [16, 8], [16, 1])
    step = DLRMTrain(model)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)
    found = []
    for batch in batches:
        optimizer.zero_grad()
        loss, _ = step(batch)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_dlrm_has_the_same_loss_curve_as_with_torchrecs_reader(tmp_path: Path) -> None:
    sources = [write(tmp_path / f"day_{day}", random_lines(800, day)) for day in range(2)]
    CriteoCommand((*sources, tmp_path / "out")).run()
    paths = criteo_paths(tmp_path / "out")
    ours = losses(CriteoBatches("train", *paths, 64, 0, 1, table_rows=[300] * 26, look="full"))
    assert len(ours) == 25
    assert ours == losses(torchrec_reader("train", *paths, 64, 0, 1))
    assert np.mean(ours[-5:]) < ours[0], "it learns"
