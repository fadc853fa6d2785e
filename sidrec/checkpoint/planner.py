"""What torch.distributed.checkpoint is told of pieces: who writes which, and which stored ones fill which."""

import io
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
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

from sidrec.checkpoint.index import CheckpointIndex, StoredTensor
from sidrec.checkpoint.piece import DTYPES, NAMES, CheckpointError, Piece


class PieceSavePlanner(SavePlanner):
    """Every rank writes the pieces it owns. The state it is given: name -> Piece."""

    def set_up_planner(
        self, state_dict: dict[str, Any], storage_meta: Any = None, is_coordinator: bool = False
    ) -> None:
        self._pieces: dict[MetadataIndex, Piece] = {
            MetadataIndex(piece.key, piece.offset): piece for piece in state_dict.values() if piece.owned
        }

    def create_local_plan(self) -> SavePlan:
        return SavePlan([_write_item(index, piece) for index, piece in self._pieces.items()])

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """Raises CheckpointError where pieces do not cover their tensor exactly once: nobody could read it again."""
        tensors: dict[str, TensorStorageMetadata] = {}
        for plan in all_plans:
            for item in plan.items:
                data = item.tensor_data
                assert data is not None, "pieces are tensors"
                tensor = tensors.setdefault(item.index.fqn, TensorStorageMetadata(data.properties, data.size, []))
                tensor.chunks.append(data.chunk)
        for key, tensor in tensors.items():
            held = sum(chunk.sizes.numel() for chunk in tensor.chunks)
            if held != tensor.size.numel():
                raise CheckpointError(f"{key}: expected pieces of {tensor.size.numel()} values together, got {held}")
        return all_plans, Metadata(dict(tensors))

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        return self._pieces[write_item.index].values

    def piece(self, write_item: WriteItem) -> Piece:
        """The piece that an item of the plan stands for."""
        return self._pieces[write_item.index]


def _write_item(index: MetadataIndex, piece: Piece) -> WriteItem:
    chunk = ChunkStorageMetadata(torch.Size(piece.offset), piece.values.shape)
    data = TensorWriteData(chunk, TensorProperties(piece.values.dtype), torch.Size(piece.shape))
    return WriteItem(index, WriteItemType.SHARD, tensor_data=data)


class PieceLoadPlanner(LoadPlanner):
    """Fills every piece from the stored ones that overlap it. The state it is given: name -> Piece."""

    def __init__(self, index: CheckpointIndex) -> None:
        self._index = index

    def set_up_planner(self, state_dict: dict[str, Any], *_: Any, **__: Any) -> None:
        self._pieces: dict[MetadataIndex, Piece] = {
            MetadataIndex(piece.key, piece.offset): piece for piece in state_dict.values()
        }

    def create_local_plan(self) -> LoadPlan:
        """Raises CheckpointError for a tensor that the checkpoint lacks, or holds in another shape or type."""
        items: list[ReadItem] = []
        for piece in self._pieces.values():
            stored = self._stored(piece)
            chunk = ChunkStorageMetadata(torch.Size(piece.offset), piece.values.shape)
            items += create_read_items_for_chunk_list(piece.key, _described(stored), [chunk])
        return LoadPlan(items)

    def _stored(self, piece: Piece) -> StoredTensor:
        stored = self._index.tensors.get(piece.key)
        if stored is None:
            raise CheckpointError(f"expected a tensor {piece.key}, got none of that name")
        expected, found = (NAMES[piece.values.dtype], piece.shape), (stored.dtype, stored.shape)
        if expected != found:
            raise CheckpointError(f"{piece.key}: expected {_words(*expected)}, got {_words(*found)}")
        return stored

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise NotImplementedError("pieces are tensors")

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        """The part of a piece that an item of the plan fills."""
        values = self._pieces[read_item.dest_index].values.detach()
        for dimension, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            values = values.narrow(dimension, start, length)
        return values

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        pass


def _described(stored: StoredTensor) -> TensorStorageMetadata:
    chunks = [ChunkStorageMetadata(torch.Size(piece.offset), torch.Size(piece.shape)) for piece in stored.pieces]
    return TensorStorageMetadata(TensorProperties(DTYPES[stored.dtype]), torch.Size(stored.shape), chunks)


def _words(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} {list(shape)}"
