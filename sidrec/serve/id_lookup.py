"""From source ids to rows: an index in memory-mapped arrays that a bundle holds for every id column.

Source ids are texts. Each has a 64-bit hash; the hashes are sorted, and the first bits of a hash name a bucket of a few
of them. A lookup of many ids is a few passes over arrays, without a Python object per id. The writer draws a seed with
which no two ids of the column collide. An id that the index lacks is taken for one that it has with a probability of
N / 2^64, 5e-12 for a hundred million ids.

Shapes: N ids of the index, M ids that are looked up, W 8-byte words of all of them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

UNKNOWN = 0
"""The row of an id that the index lacks."""

HASHES, ROWS, BUCKETS = "hashes.npy", "rows.npy", "buckets.npy"
IDS_PER_BUCKET = 4
BUCKETS_AT_A_TIME = 1 << 18
SEEDS = 16
Hashes = NDArray[np.uint64]
_WORD = 8


class Texts(NamedTuple):
    """UTF-8 texts end to end, as Arrow holds them. text i: bytes[offsets[i]:offsets[i + 1]]."""

    bytes_: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Texts":
        """Raises UnicodeEncodeError for a lone surrogate."""
        encoded = [text.encode() for text in texts]
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(each) for each in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets)


def hashes(texts: Texts, seed: int) -> Hashes:
    """A hash of each text, uint64 [M]: its words and their places are mixed, and the results added."""
    if len(texts.offsets) == 1:
        return np.empty(0, dtype=np.uint64)
    lengths_M = np.diff(texts.offsets)
    words_M = np.maximum((lengths_M + _WORD - 1) // _WORD, 1)
    first_M = np.cumsum(words_M) - words_M
    padded = np.zeros(int(words_M.sum()) * _WORD, dtype=np.uint8)
    total = int(texts.offsets[-1] - texts.offsets[0])
    moved = np.repeat(first_M * _WORD - (texts.offsets[:-1] - texts.offsets[0]), lengths_M)
    padded[moved + np.arange(total)] = texts.bytes_[texts.offsets[0] : texts.offsets[-1]]
    place_W = np.arange(len(padded) // _WORD) - np.repeat(first_M, words_M)
    key_W = splitmix64(place_W.astype(np.uint64) + np.uint64(seed * _ODD % 2**64))
    mixed_W = splitmix64(padded.view("<u8") ^ key_W)
    return splitmix64(np.add.reduceat(mixed_W, first_M) ^ (lengths_M.astype(np.uint64) * np.uint64(_ODD)))


_ODD = 0x9E3779B97F4A7C15


def splitmix64(numbers: Hashes) -> Hashes:
    """The output function of the splitmix64 generator, a bijection of 64-bit numbers (Steele et al., OOPSLA 2014).

    Every bit of the result depends on every bit of the number.
    """
    mixed = numbers + np.uint64(_ODD)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def ids_folder(folder: Path, column: str) -> Path:
    """The folder of a column's index in a bundle; letters that no file's name may have are escaped."""
    return folder / "ids" / f"of_{quote(column, safe='')}"


class IdLookup:
    """The index of one id column. Memory: that of the pages that lookups touch."""

    def __init__(self, folder: Path, seed: int) -> None:
        """folder: as `write_ids` wrote it, seed: as it returned. Raises OSError and ValueError."""
        self._hashes_N: Hashes = np.load(folder / HASHES, mmap_mode="r")
        self._rows_N = np.load(folder / ROWS, mmap_mode="r")
        self._buckets: NDArray[np.int64] = np.load(folder / BUCKETS, mmap_mode="r")
        self._seed = seed

    def __len__(self) -> int:
        return len(self._hashes_N)

    def rows(self, texts: Texts) -> NDArray[np.int64]:
        """The row of each text, int64 [M]; UNKNOWN for one that is not in the index."""
        wanted_M = hashes(texts, self._seed)
        bucket_M = bucket_of(wanted_M, len(self._buckets) - 1)
        place_M, last_M = self._buckets[bucket_M], self._buckets[bucket_M + 1]
        row_M = np.full(len(wanted_M), UNKNOWN, dtype=np.int64)
        open_K = np.flatnonzero(place_M < last_M)  # those that are still looked for
        while len(open_K):
            found_K = self._hashes_N[place_M[open_K]] == wanted_M[open_K]
            row_M[open_K[found_K]] = self._rows_N[place_M[open_K[found_K]]]
            open_K = open_K[~found_K]
            place_M[open_K] += 1
            open_K = open_K[place_M[open_K] < last_M[open_K]]
        return row_M


def bucket_of(hashes_M: Hashes, buckets: int) -> NDArray[np.int64]:
    """The bucket of each hash: its first bits. buckets: a power of two."""
    bits = buckets.bit_length() - 1
    if bits == 0:
        return np.zeros(len(hashes_M), dtype=np.int64)
    return (hashes_M >> np.uint64(64 - bits)).astype(np.int64)


def write_ids(folder: Path, texts: Texts, first_row: int = 1) -> int:
    """Writes the index of an id column. Text i gets row first_row + i. Returns the seed of the hashes.

    Raises ValueError naming the place of a text that is there twice. Memory: 40 bytes per id.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(SEEDS):
        found_N = hashes(texts, seed)
        order_N = np.argsort(found_N, kind="stable")
        sorted_N = found_N[order_N]
        equal = np.flatnonzero(sorted_N[1:] == sorted_N[:-1])
        if not len(equal):
            break
        _refuse_repeated(texts, order_N[equal], order_N[equal + 1])
    else:
        raise AssertionError(f"texts that collide under {SEEDS} seeds are equal")
    np.save(folder / HASHES, sorted_N)
    np.save(folder / ROWS, (order_N + first_row).astype(np.uint32 if len(order_N) < 1 << 31 else np.int64))
    np.save(folder / BUCKETS, np.concatenate(list(first_of_buckets(folder / HASHES))))
    return seed


def first_of_buckets(hashes: Path) -> Iterator[NDArray[np.int64]]:
    """Where each bucket begins in a file of sorted hashes, a block of buckets at a time; last, where they end."""
    sorted_N: Hashes = np.load(hashes, mmap_mode="r")
    buckets = 1 << (len(sorted_N) // IDS_PER_BUCKET).bit_length()
    width = np.uint64(64 - (buckets.bit_length() - 1))
    for first in range(0, buckets, BUCKETS_AT_A_TIME):
        bucket_K = np.arange(first, min(first + BUCKETS_AT_A_TIME, buckets), dtype=np.uint64)
        least_K = bucket_K << width if buckets > 1 else bucket_K
        yield np.searchsorted(sorted_N, least_K).astype(np.int64)
    yield np.array([len(sorted_N)])


def _refuse_repeated(texts: Texts, first_K: NDArray[np.int64], second_K: NDArray[np.int64]) -> None:
    for first, second in zip(first_K.tolist(), second_K.tolist(), strict=True):
        one, other = (_bytes(texts, place) for place in (first, second))
        if one == other:
            raise ValueError(f"{one.decode(errors='replace')!r} at places {first} and {second}")


def _bytes(texts: Texts, place: int) -> bytes:
    return texts.bytes_[texts.offsets[place] : texts.offsets[place + 1]].tobytes()
