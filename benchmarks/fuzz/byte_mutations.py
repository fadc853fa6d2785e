"""Damage that knows nothing of a format: what disks, networks and full file systems do."""

from collections.abc import Callable
from random import Random

Mutation = Callable[[bytes, Random], bytes]
EDGE = 256  # bytes at either end of a file: magic numbers, headers, footers
EXTREMES = (b"\x00", b"\xff", b"\x7f\xff\xff\xff", b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\x80" + b"\x00" * 7)


def _span(content: bytes, random: Random) -> tuple[int, int]:
    start = random.randrange(len(content))
    return start, min(len(content), start + 2 ** random.randrange(10))


def _flip(content: bytes, random: Random, first: int, last: int) -> bytes:
    changed = bytearray(content)
    for _ in range(2 ** random.randrange(4)):
        changed[random.randrange(first, last)] ^= 1 << random.randrange(8)
    return bytes(changed)


def flip_bits(content: bytes, random: Random) -> bytes:
    return _flip(content, random, 0, len(content))


def flip_bits_at_the_start(content: bytes, random: Random) -> bytes:
    return _flip(content, random, 0, min(EDGE, len(content)))


def flip_bits_at_the_end(content: bytes, random: Random) -> bytes:
    """In a parquet file, the lower levels of its footer."""
    return _flip(content, random, max(0, len(content) - 4 * EDGE), len(content))


def cut_off(content: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content))]


def cut_off_the_start(content: bytes, random: Random) -> bytes:
    return content[random.randrange(1, len(content) + 1) :]


def insert(content: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + random.randbytes(2 ** random.randrange(10)) + content[at:]


def remove(content: bytes, random: Random) -> bytes:
    start, stop = _span(content, random)
    return content[:start] + content[stop:]


def repeat(content: bytes, random: Random) -> bytes:
    start, stop = _span(content, random)
    return content[:stop] + content[start:stop] + content[stop:]


def swap(content: bytes, random: Random) -> bytes:
    one, two, three = sorted(random.randrange(len(content) + 1) for _ in range(3))
    return content[:one] + content[two:three] + content[one:two] + content[three:]


def overwrite(content: bytes, random: Random) -> bytes:
    start, stop = _span(content, random)
    return content[:start] + random.randbytes(stop - start) + content[stop:]


def zeros(content: bytes, random: Random) -> bytes:
    """A block that was never written."""
    start, stop = _span(content, random)
    return content[:start] + bytes(stop - start) + content[stop:]


def extreme_bytes(content: bytes, random: Random) -> bytes:
    """Lengths and counts become as large, or as negative, as they can."""
    start, word = random.randrange(len(content)), random.choice(EXTREMES)
    return content[:start] + word + content[start + len(word) :]


def append(content: bytes, random: Random) -> bytes:
    return content + random.choice([content, b"\x00" * 512, b"\n", random.randbytes(99)])


def empty(content: bytes, random: Random) -> bytes:
    return b""


BYTES: dict[str, Mutation] = {
    mutation.__name__.replace("_", " "): mutation
    for mutation in (
        *(flip_bits, flip_bits_at_the_start, flip_bits_at_the_end, cut_off, cut_off_the_start),
        *(insert, remove, repeat, swap, overwrite, zeros, extreme_bytes, append, empty),
    )
}
