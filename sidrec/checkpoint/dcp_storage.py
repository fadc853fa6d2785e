"""Tensor shards through torch.distributed.checkpoint (DCP): storage, planners, and a reader for plain `dcp.load`.

`save_shards`: the planner lists the shards that each rank owns, the writer puts them into rank-R.safetensors, and rank
0 writes index.json last. `load_shards`: the planner finds the stored shards that overlap each shard to fill, the reader
copies the slices. torch's own FileSystemWriter pickles its index, and unpickling can run code.
"""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch import distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import StorageReader, StorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from sidrec.checkpoint.tensor_shard import (
    DTYPE_NAMES,
    DTYPES,
    VERSION,
    CheckpointIndex,
    StoredFile,
    StoredShard,
    StoredTensor,
    TensorShard,
    read_index,
    shard_name,
    write_index,
    write_shard_file,
)
from sidrec.errors import CheckpointError


def save_shards(path: Path, shards: Sequence[TensorShard], rank: int, group: dist.ProcessGroup) -> None:
    """Writes the owned shards of all ranks into the empty folder `path`; rank 0 writes the index last.

    Every rank of the group calls it. Raises, on every rank, the CheckpointError or OSError of the first failed rank.
    """
    state = {shard.name: shard for shard in shards}
    with _first_failure(path):
        dcp.save(
            state,
            checkpoint_id=path,
            storage_writer=ShardWriter(path, rank),
            planner=ShardSavePlanner(),
            process_group=group,
        )


def load_shards(path: Path, index: CheckpointIndex, shards: Sequence[TensorShard], group: dist.ProcessGroup) -> None:
    """Fills the shards from the checkpoint in `path`, under any sharding. index: of the checkpoint.

    Every rank of the group calls it. Raises, on every rank, CheckpointError for a shard that the checkpoint lacks.
    """
    state = {shard.name: shard for shard in shards}
    with _first_failure(path):
        dcp.load(
            state,
            checkpoint_id=path,
            storage_reader=CheckpointReader(path, index),
            planner=ShardLoadPlanner(index),
            process_group=group,
        )


@contextmanager
def _first_failure(path: Path) -> Iterator[None]:
    """Turns CheckpointException, which torch gathers from all ranks, into the error of the first failed rank."""
    try:
        yield
    except CheckpointException as failed:
        rank, (error, _) = min(failed.failures.items())
        if isinstance(error, OSError):
            raise OSError(error.errno, f"rank {rank}: {error.strerror or error}", str(error.filename or path)) from None
        words = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path}: {words}") from None


class ShardWriter(StorageWriter):
    """Writes each rank's rank-R.safetensors, then index.json on rank 0."""

    def __init__(self, path: Path, rank: int) -> None:
        self._path, self._rank = path, rank

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *_: Any, **__: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        assert isinstance(planner, ShardSavePlanner), "save_shards passes it"
        name = f"rank-{self._rank}.safetensors"
        shards = [planner.shard(item) for item in plan.items]
        written: Future[list[WriteResult]] = Future()
        stored = write_shard_file(self._path / name, shards) if shards else StoredFile(0, 0)
        sizes = [shard.values.numel() * shard.values.element_size() for shard in shards]
        written.set_result(
            [
                WriteResult(item.index, size, (name, shard.values.shape, stored))
                for item, shard, size in zip(plan.items, shards, sizes, strict=True)
            ]
        )
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        files: dict[str, StoredFile] = {}
        shards: dict[str, list[StoredShard]] = {}
        for result in (result for of_rank in results for result in of_rank):
            name, shape, stored = result.storage_data
            files[name] = stored
            offset = tuple(result.index.offset or ())
            shards.setdefault(result.index.fqn, []).append(StoredShard(offset, tuple(shape), name))
        tensors = {}
        for key, found in sorted(shards.items()):
            tensor = metadata.state_dict_metadata[key]
            assert isinstance(tensor, TensorStorageMetadata), "shards are tensors"
            by_offset = tuple(sorted(found, key=lambda shard: shard.offset))
            tensors[key] = StoredTensor(DTYPE_NAMES[tensor.properties.dtype], tuple(tensor.size), by_offset)
        write_index(self._path, CheckpointIndex(VERSION, tensors, files))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True

    def storage_meta(self) -> StorageMeta | None:
        return None


class CheckpointReader(StorageReader):
    """Lets plain `torch.distributed.checkpoint.load` read a checkpoint of sidrec, without the model that wrote it.

    Tensors have the keys of `tensor_shard`: "model/NAME" for weights, "optimizer/NAME/STATE" for optimizer states,
    "updates/NAME" for the updates that each row of the HID table received.
    Tables are whole, [rows, width], whatever the sharding plan and the number of ranks were. With torch's default
    planner, `path` being a folder step-N:

    >>> import torch
    >>> from torch.distributed import checkpoint as dcp
    >>> from sidrec.checkpoint import CheckpointReader
    >>> reader = CheckpointReader(path)
    >>> stored = reader.read_metadata().state_dict_metadata
    >>> state = {key: torch.empty(t.size, dtype=t.properties.dtype) for key, t in stored.items()}
    >>> dcp.load(state, storage_reader=reader, no_dist=True)

    A state of fewer keys reads less, and only the files and slices that it needs.
    """

    def __init__(self, path: Path | str, index: CheckpointIndex | None = None) -> None:
        """path: the folder step-N. index: its index, where it has been read already.

        Raises CheckpointError where the folder has no valid index.
        """
        self._path = Path(path)
        self._index = read_index(self._path) if index is None else index
        self._files = {
            MetadataIndex(key, shard.offset): (shard.file, shard_name(key, shard.offset))
            for key, tensor in self._index.tensors.items()
            for shard in tensor.shards
        }

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Shape, dtype and shards of every tensor, by key."""
        tensors = {key: tensor_metadata(tensor) for key, tensor in self._index.tensors.items()}
        return Metadata(dict(tensors), planner_data={key: (key,) for key in tensors})

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *_: Any, **__: Any) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[tuple[str, ReadItem]]] = {}
        for item in plan.items:
            file, name = self._files[item.storage_index]
            by_file.setdefault(file, []).append((name, item))
        for file, wanted in by_file.items():
            try:
                with safe_open(self._path / file, framework="pt") as stored:
                    for name, item in wanted:
                        target = planner.resolve_tensor(item).detach()
                        target.copy_(_stored_part(stored, name, item))
                        planner.commit_tensor(item, target)
            except (SafetensorError, OSError, RuntimeError) as error:
                words = " ".join(str(error).split())
                raise CheckpointError(f"{file}: expected the tensors of its index, got: {words}") from None
        read: Future[None] = Future()
        read.set_result(None)
        return read

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def tensor_metadata(stored: StoredTensor) -> TensorStorageMetadata:
    """DCP's metadata of a stored tensor."""
    chunks = [ChunkStorageMetadata(torch.Size(shard.offset), torch.Size(shard.shape)) for shard in stored.shards]
    return TensorStorageMetadata(TensorProperties(DTYPES[stored.dtype]), torch.Size(stored.shape), chunks)


def _stored_part(stored: Any, name: str, item: ReadItem) -> Tensor:
    """The slice of a stored shard that `item` reads; stored: an open safetensors file."""
    if not item.lengths:
        scalar: Tensor = stored.get_tensor(name)
        return scalar
    wanted = zip(item.storage_offsets, item.lengths, strict=True)
    part: Tensor = stored.get_slice(name)[tuple(slice(start, start + length) for start, length in wanted)]
    return part


class ShardSavePlanner(SavePlanner):
    """Plans which shards this rank writes: those it owns. state_dict: name -> TensorShard."""

    def set_up_planner(
        self, state_dict: dict[str, Any], storage_meta: Any = None, is_coordinator: bool = False
    ) -> None:
        self._shards: dict[MetadataIndex, TensorShard] = {
            MetadataIndex(shard.key, shard.offset): shard for shard in state_dict.values() if shard.owned
        }

    def create_local_plan(self) -> SavePlan:
        return SavePlan([_write_item(index, shard) for index, shard in self._shards.items()])

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """Raises CheckpointError if shards do not cover their tensor exactly once: it could not be read."""
        tensors: dict[str, TensorStorageMetadata] = {}
        for plan in all_plans:
            for item in plan.items:
                data = item.tensor_data
                assert data is not None, "shards are tensors"
                tensor = tensors.setdefault(item.index.fqn, TensorStorageMetadata(data.properties, data.size, []))
                tensor.chunks.append(data.chunk)
        for key, tensor in tensors.items():
            held = sum(chunk.sizes.numel() for chunk in tensor.chunks)
            if held != tensor.size.numel():
                raise CheckpointError(f"{key}: expected shards of {tensor.size.numel()} values together, got {held}")
        return all_plans, Metadata(dict(tensors))

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        return self._shards[write_item.index].values

    def shard(self, write_item: WriteItem) -> TensorShard:
        """The shard that `write_item` writes."""
        return self._shards[write_item.index]


def _write_item(index: MetadataIndex, shard: TensorShard) -> WriteItem:
    chunk = ChunkStorageMetadata(torch.Size(shard.offset), shard.values.shape)
    data = TensorWriteData(chunk, TensorProperties(shard.values.dtype), torch.Size(shard.shape))
    return WriteItem(index, WriteItemType.SHARD, tensor_data=data)


class ShardLoadPlanner(LoadPlanner):
    """Plans which stored shards fill each shard: those that overlap it. state_dict: name -> TensorShard."""

    def __init__(self, index: CheckpointIndex) -> None:
        self._index = index

    def set_up_planner(self, state_dict: dict[str, Any], *_: Any, **__: Any) -> None:
        self._shards: dict[MetadataIndex, TensorShard] = {
            MetadataIndex(shard.key, shard.offset): shard for shard in state_dict.values()
        }

    def create_local_plan(self) -> LoadPlan:
        """Raises CheckpointError for a tensor that the checkpoint lacks or has in another shape or type."""
        items: list[ReadItem] = []
        for shard in self._shards.values():
            stored = self._stored(shard)
            chunk = ChunkStorageMetadata(torch.Size(shard.offset), shard.values.shape)
            items += create_read_items_for_chunk_list(shard.key, tensor_metadata(stored), [chunk])
        return LoadPlan(items)

    def _stored(self, shard: TensorShard) -> StoredTensor:
        stored = self._index.tensors.get(shard.key)
        if stored is None:
            raise CheckpointError(f"expected a tensor {shard.key}, got none of that name")
        expected, found = (DTYPE_NAMES[shard.values.dtype], shard.shape), (stored.dtype, stored.shape)
        if expected != found:
            raise CheckpointError(f"{shard.key}: expected {_words(*expected)}, got {_words(*found)}")
        return stored

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise NotImplementedError("shards are tensors")

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        """The slice of a shard that `read_item` fills."""
        values = self._shards[read_item.dest_index].values.detach()
        for dimension, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            values = values.narrow(dimension, start, length)
        return values

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        pass


def _words(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} {list(shape)}"
