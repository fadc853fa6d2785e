"""Which checkpoint is taken: the newest whose files are what was written, whichever rank looks at them."""

import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from threading import Thread

import pytest
import torch

from sidrec.checkpoint.checkpoint_store import Saver, bytes_written, checkpoints, chosen_checkpoint, newest_sound
from sidrec.checkpoint.tensor_shard import whole_tensor
from sidrec.checkpoint.train_state import Best, Position
from sidrec.config.recipe import CheckpointConfig
from sidrec.errors import CheckpointError
from sidrec.parallel.process_group import Ranks
from tests.ranks import joined, run_on_ranks

Damage = Callable[[Path], object]


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def saved(folder: Path, ranks: Ranks) -> None:
    """Steps 1, 2 and 3, of which 2 is the best; a tensor for each rank."""
    saver = Saver(folder, CheckpointConfig(keep=3), {}, ranks)
    shards = [whole_tensor(f"ranks/{ranks.rank}/values", torch.arange(1000))]
    for step in (1, 2, 3):
        saver.save(shards, Position(step, 0, step, None, best=Best("test", "auc", 0.5, 2)))
    saver.finish()


def pass_over(rank: int, world: int, folder: Path, damage: dict[str, str]) -> tuple[str | None, str]:
    """What is taken after the damage, and what this rank says of it."""
    ranks = joined(rank, world)
    saved(folder, ranks)
    if ranks.first:
        for file, how in damage.items():
            DAMAGES[how](folder / file)
    torch.distributed.barrier()
    with redirect_stderr(StringIO()) as said:
        path = newest_sound(folder, ranks, set_aside=True)
    return path.name if path else None, said.getvalue()


DAMAGES: dict[str, Damage] = {"cut off": cut_off, "flip": flip, "remove": Path.unlink}


@pytest.mark.parametrize("file", ["rank-0.safetensors", "rank-1.safetensors", "position.json", "index.json"])
def test_the_one_before_is_taken_whichever_rank_meets_the_damage(file: str, tmp_path: Path) -> None:
    damage = {f"step-3/{file}": "remove" if file == "index.json" else "flip"}
    (first, said), (second, silent) = run_on_ranks(2, pass_over, tmp_path, damage)
    assert (first, second) == ("step-2", "step-2")
    assert said.startswith(f"sidrec: {tmp_path}/step-3/{file}: expected ")
    assert said.endswith("; this checkpoint is set aside as step-3.damaged, step-2 taken\n")
    assert silent == ""
    assert {path.name for path in tmp_path.iterdir()} == {"step-1", "step-2", "step-3.damaged", "best.json"}


def test_two_damaged_ones(tmp_path: Path) -> None:
    (tmp_path / "step-3.damaged").mkdir()
    damage = {"step-3/rank-0.safetensors": "flip", "step-2/rank-0.safetensors": "cut off"}
    ((taken, said),) = run_on_ranks(1, pass_over, tmp_path, damage)
    assert taken == "step-1"
    assert [line.split("aside as ")[1] for line in said.splitlines()] == [
        "step-3.damaged-2, step-1 taken",
        "step-2.damaged, step-1 taken",
    ]


def choose(rank: int, world: int, folder: Path) -> None:
    ranks = joined(rank, world)
    assert newest_sound(folder, ranks, set_aside=True) is None, "nothing there, nothing taken"
    with pytest.raises(CheckpointError, match="expected a checkpoint, got none"):
        chosen_checkpoint(folder, "newest", ranks)
    saved(folder, ranks)
    assert chosen_checkpoint(folder, None, ranks).name == "step-2", "the best, as the run keeps one"
    assert chosen_checkpoint(folder, "newest", ranks).name == "step-3"
    assert chosen_checkpoint(folder, "step-1", ranks).name == "step-1"
    flip(folder / "step-2" / "rank-0.safetensors")
    with pytest.raises(CheckpointError, match=r"step-2/rank-0.safetensors: expected the CRC-32"):
        chosen_checkpoint(folder, "best", ranks)
    with pytest.raises(CheckpointError, match=r"got step-7; it has step-3, step-2, step-1"):
        chosen_checkpoint(folder, "step-7", ranks)
    (folder / "best.json").unlink()
    assert chosen_checkpoint(folder, None, ranks).name == "step-3"


def test_a_checkpoint_is_chosen_by_name(tmp_path: Path) -> None:
    run_on_ranks(1, choose, tmp_path)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    for name in ("step-12", "step-7", "step-best", "step-9.partial", "step-8.damaged", "step--1"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-12", "step-7"]
    (tmp_path / "step-9.partial" / "rank-0.safetensors").write_bytes(b"12345")
    (tmp_path / "step-7" / "rank-0.safetensors").write_bytes(b"123")
    assert bytes_written(tmp_path) == 5


def test_sizes_are_taken_while_checkpoints_are_finished(tmp_path: Path) -> None:
    """A rank that waits looks at the folder while rank 0 gives the checkpoint its name, or removes an old one."""

    def save_and_remove() -> None:
        for _ in range(300):
            partial, finished = tmp_path / "step-1.partial", tmp_path / "step-1"
            partial.mkdir()
            (partial / "rank-0.safetensors").write_bytes(b"12345")
            partial.replace(finished)
            shutil.rmtree(finished)

    saving = Thread(target=save_and_remove)
    saving.start()
    seen = set()
    while saving.is_alive():
        seen.add(bytes_written(tmp_path))
    assert seen <= {0, 5}
