"""Checkpoints: written whole or not at all, read under any sharding plan and any number of ranks.

Public: `CheckpointReader` for plain torch.distributed.checkpoint; `open_checkpoint`, `StoredCheckpoint` and
`StoredTable` to read tables by ranges of rows without the model. The rest of the package may change.

Writing: the trainer collects the state's shards (`state.state_shards`) and passes them to `checkpoint_store.Saver`,
which copies them and writes in the background. `dcp_storage.save_shards` writes one safetensors file per rank and the
index (`tensor_shard`) into step-N.partial, which is then renamed to step-N. Reading: `checkpoint_store.newest_sound`
checks the files, `state.load_model` checks that they fit the model, and `dcp_storage.load_shards` fills its shards.
"""

from sidrec.checkpoint.dcp_storage import CheckpointReader
from sidrec.checkpoint.stored_tables import StoredCheckpoint, StoredTable, open_checkpoint

__all__ = ["CheckpointReader", "StoredCheckpoint", "StoredTable", "open_checkpoint"]
