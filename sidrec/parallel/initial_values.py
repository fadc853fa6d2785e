"""Initial values of the tables: a function of seed, table, row and column, independent of plan, ranks and device.

The generator is Philox4x64 with ten rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). It is
counter-based: a 64-bit value depends on its place in the table and the key alone. NumPy draws it on the host; on a GPU
the same integers come from torch's operators, and the same float64 operations turn them into uniform numbers, each of
which IEEE 754 rounds alike on every device: the values are equal to the last bit.

Shapes: N rows, D width of a table, K blocks of four draws.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig

CPU = torch.device("cpu")

ROWS_AT_A_TIME = {"cpu": 4096, "cuda": 65536}
"""Rows that are drawn together: few on a host, whose allocator keeps blocks of some 10 MB when they are freed."""
DRAWS_PER_BLOCK = 4
"""64-bit numbers that Philox makes for each value of its counter."""


def fill_tables(sharded: nn.Module, tables: dict[str, EmbeddingBagConfig], seed: int) -> None:
    """Fills every local shard of `sharded`, a DistributedModelParallel, with its part of the initial values."""
    with torch.no_grad():
        for name, value in sharded.state_dict().items():
            table = tables.get(name.split(".")[-2])
            if table is None or not name.endswith(".weight") or ".embedding_bags." not in name:
                continue
            for shard, row, column in _local_shards(value):
                rows, width = shard.shape
                together = ROWS_AT_A_TIME[shard.device.type]
                for start in range(0, rows, together):
                    count = min(together, rows - start)
                    values_ND = initial_rows(seed, table, row + start, count, shard.device)
                    shard[start : start + count].copy_(values_ND[:, column : column + width])


def _local_shards(value: Tensor | ShardedTensor) -> Iterator[tuple[Tensor, int, int]]:
    """This rank's shards of a table: (values, first row, first column)."""
    if isinstance(value, ShardedTensor):
        for shard in value.local_shards():
            yield shard.tensor, shard.metadata.shard_offsets[0], shard.metadata.shard_offsets[1]
    else:
        yield value, 0, 0


def initial_rows(seed: int, table: EmbeddingBagConfig, first: int, count: int, device: torch.device = CPU) -> Tensor:
    """Rows [first, first + count) of a table's initial values, float32 [count, D], uniform in the table's range.

    device: where they are drawn; a CPU draws them by NumPy.
    """
    dim = table.embedding_dim
    low, high = table.get_weight_init_min(), table.get_weight_init_max()
    draw = drawn_by_numpy if device.type == "cpu" else drawn_by_torch
    values = draw(_key(seed, table.name), first * dim, count * dim, device)
    return values.mul_(high - low).add_(low).float().view(count, dim)


def _key(seed: int, table: str) -> int:
    """128 bits."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{table}".encode(), digest_size=16).digest(), "little")


def drawn_by_numpy(key: int, start: int, count: int, device: torch.device) -> Tensor:
    """The key's draws [start, start + count), float64 in [0, 1), on the host."""
    bits = np.random.Philox(key=key)
    bits.advance(start // DRAWS_PER_BLOCK)
    generator = np.random.Generator(bits)
    generator.random(start % DRAWS_PER_BLOCK)
    return torch.from_numpy(generator.random(count)).to(device)


def drawn_by_torch(key: int, start: int, count: int, device: torch.device) -> Tensor:
    """The same draws, by operators on the device; no draw before `start` is made, and nothing comes from the host."""
    first, last = start // DRAWS_PER_BLOCK, -(-(start + count) // DRAWS_PER_BLOCK)
    bits_K4 = _philox(torch.arange(first + 1, last + 1, device=device), key)  # NumPy counts blocks from 1
    uniform = _shifted(bits_K4, 11).double().mul_(2.0**-53)
    skipped = start - first * DRAWS_PER_BLOCK
    return uniform.view(-1)[skipped : skipped + count]


# Philox on int64, whose sums and products wrap around as those of unsigned numbers do. A number n of 64 bits is
# n - 2**64 from 2**63 on, and shifts to the right bring its sign in from the left.


MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
WEYL = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
"""Added to the two halves of the key before each round but the first."""
ROUNDS = 10
MASK = (1 << 32) - 1


def _philox(counter_K: Tensor, key: int) -> Tensor:
    """Four 64-bit numbers per counter, [K, 4]; the counter's three higher words are 0."""
    keys = [key % 2**64, key >> 64]
    zero_K = torch.zeros_like(counter_K)
    words = (counter_K, zero_K, zero_K, zero_K)
    for number in range(ROUNDS):
        low_of_0, high_of_0 = _product(words[0], MULTIPLIERS[0])
        low_of_2, high_of_2 = _product(words[2], MULTIPLIERS[1])
        first, second = (_signed(key + number * step) for key, step in zip(keys, WEYL, strict=True))
        words = high_of_2 ^ words[1] ^ first, low_of_2, high_of_0 ^ words[3] ^ second, low_of_0
    return torch.stack(words, dim=1)


def _product(word_K: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """The lower and the higher 64 bits of a product of 128 bits, from products of 32-bit halves."""
    low, high = factor & MASK, factor >> 32
    low_K, high_K = word_K & MASK, _shifted(word_K, 32)
    low_high_K, high_low_K = low_K * high, high_K * low
    carried_K = _shifted(low_K * low, 32) + (low_high_K & MASK) + (high_low_K & MASK)
    of_high_K = high_K * high + _shifted(low_high_K, 32) + _shifted(high_low_K, 32) + (carried_K >> 32)
    return word_K * _signed(factor), of_high_K


def _shifted(word: Tensor, bits: int) -> Tensor:
    """Shifted to the right, with zeros from the left."""
    return (word >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    """The int64 with the lowest 64 bits of an integer."""
    return (number + 2**63) % 2**64 - 2**63
