"""Checkpoints: written whole or not at all, read under any sharding plan and any number of ranks.

Public: `CheckpointReader` for plain torch.distributed.checkpoint; `open_checkpoint`, `StoredCheckpoint` and
`StoredTable` to read tables by ranges of rows. None of them needs the model. The rest of the package may change.

How a checkpoint is written: the trainer collects the state's shards (`state.state_shards`) and hands them to
`checkpoint_store.Saver`, which stages a copy and writes in the background: `dcp_storage.save_shards` writes one
safetensors file per rank and the index (`tensor_shard`), then the folder step-N.partial becomes step-N. How it is read:
`checkpoint_store.newest_sound` checks the files, `state.load_model` matches them with the model, and
`dcp_storage.load_shards` fills the model's shards.
"""

from sidrec.checkpoint.dcp_storage import CheckpointReader
from sidrec.checkpoint.stored_tables import StoredCheckpoint, StoredTable, open_checkpoint

__all__ = ["CheckpointReader", "StoredCheckpoint", "StoredTable", "open_checkpoint"]
