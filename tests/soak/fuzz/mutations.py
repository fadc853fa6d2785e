"""Mutations of bytes, of text, and of JSON and YAML trees."""

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from random import Random
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

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


# Mutations of text: CSV, JSON and YAML as editors, spreadsheets, encodings and attackers may leave them.

NUMBER = re.compile(rb"-?\d+(\.\d+)?")
KEY = re.compile(rb'"\w+":')
NUMBERS = (b"-1", b"0", b"1e400", b"-1e400", b"NaN", b"Infinity", b"nan", b"inf", b".inf", b"1_000", b"0x1F", b"1e-400")
LARGE = tuple(str(number).encode() for number in (2**31, 2**32, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**30))
LONGEST = b"9" * 5000  # digits; Python refuses to convert more than 4300
ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "cp037", "utf-7")
WRONG = (b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\x00", b"\xef\xbb\xbf", b"\x1b[31m", "\u202e\u2028".encode(), b"\xe9")
DEPTH = 100_000  # beyond any parser's stack


def _replace(pattern: re.Pattern[bytes], content: bytes, random: Random, by: bytes) -> bytes:
    found = list(pattern.finditer(content))
    if not found:
        return content + by
    place = random.choice(found)
    return content[: place.start()] + by + content[place.end() :]


def _at(content: bytes, random: Random, text: bytes) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + text + content[at:]


def other_number(content: bytes, random: Random) -> bytes:
    return _replace(NUMBER, content, random, random.choice((*NUMBERS, *LARGE, LONGEST)))


def text_for_a_number(content: bytes, random: Random) -> bytes:
    return _replace(NUMBER, content, random, random.choice((b"abc", b'"12"', b"null", b"", b"true", b"[]", b"{}")))


def other_encoding(content: bytes, random: Random) -> bytes:
    return content.decode("latin-1").encode(random.choice(ENCODINGS))


def wrong_characters(content: bytes, random: Random) -> bytes:
    return _at(content, random, random.choice(WRONG))


def line_twice(content: bytes, random: Random) -> bytes:
    lines = content.splitlines(keepends=True)
    at = random.randrange(len(lines))
    return b"".join([*lines[: at + 1], *lines[at:]])


def line_less(content: bytes, random: Random) -> bytes:
    lines = content.splitlines(keepends=True)
    del lines[random.randrange(len(lines))]
    return b"".join(lines)


def lines_in_another_order(content: bytes, random: Random) -> bytes:
    lines = content.splitlines(keepends=True)
    random.shuffle(lines)
    return b"".join(lines)


def other_line_ends(content: bytes, random: Random) -> bytes:
    return content.replace(b"\n", random.choice((b"\r\n", b"\r", b"\n\n", b"", b"\x0b")))


def other_separator(content: bytes, random: Random) -> bytes:
    found = [separator for separator in (b",", b"\t", b"::", b": ", b"|") if separator in content] or [b"\n"]
    return content.replace(random.choice(found), random.choice((b";", b"\t", b",", b" ", b"")))


def separator_more(content: bytes, random: Random) -> bytes:
    return _at(content, random, random.choice((b",", b"\t", b"::", b":", b"- ", b"\n", b"\n\n\n")))


def open_quote(content: bytes, random: Random) -> bytes:
    return _at(
        content, random, random.choice((b'"', b"'", b"[", b"{", b"}", b"]", b"&a ", b"*a", b"!!python/name:os.system "))
    )


def key_twice(content: bytes, random: Random) -> bytes:
    """JSON's; a key of YAML is a line."""
    found = list(KEY.finditer(content))
    if not found:
        return line_twice(content, random)
    key = random.choice(found)
    return content[: key.start()] + key.group() + b" 0, " + content[key.start() :]


def renamed_key(content: bytes, random: Random) -> bytes:
    words = list(re.finditer(rb"[a-z_]{3,}", content))
    if not words:
        return _at(content, random, b"x")
    word = random.choice(words)
    return content[: word.start()] + word.group() + b"x" + content[word.end() :]


def very_long(content: bytes, random: Random) -> bytes:
    return _at(content, random, random.choice((b"x", b"7", b" ", b"\n", b'"x",')) * 1_000_000)


def deep_nesting(content: bytes, random: Random) -> bytes:
    opened, closed = random.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"(", b")"), (b"- ", b"")))
    return _replace(NUMBER, content, random, opened * DEPTH + b"1" + closed * DEPTH)


TEXT: dict[str, Mutation] = {
    mutation.__name__.replace("_", " "): mutation
    for mutation in (
        *(other_number, text_for_a_number, other_encoding, wrong_characters, line_twice, line_less),
        *(lines_in_another_order, other_line_ends, other_separator, separator_more, open_quote, key_twice),
        *(renamed_key, very_long, deep_nesting),
    )
}


# Mutations of JSON and YAML trees: missing keys, other types, values out of range.

Tree = Any
HOSTILE: tuple[Tree, ...] = (
    *(None, True, False, "", "x", " ", [], {}, [[]], {"a": {}}, [None], "a\nb", "\x1b[31m", "\u2028", "x" * 100_000),
    *(-1, 0, 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400, 0.5, -0.0, 1e308, 5e-324),
    *(float("nan"), float("inf"), float("-inf"), "NaN", "1e999", "-1", "12", "None", "true"),
    *("../../../etc/passwd", "/etc/passwd", "/dev/zero", ".", "..", "a" * 300, "\x00", "con/\\x", "$HOME", "`id`"),
    *([0] * 10_000, {str(number): number for number in range(1000)}, [[[[[[[[]]]]]]]]),
)
POOL = 100  # values that hypothesis draws
BOMB = 12  # levels, each of nine of the one before: 9^12 values in a few hundred bytes


@cache
def drawn(seed: int) -> list[Tree]:
    """JSON values that hypothesis draws; the same for the same seed."""
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    trees = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=8), inner))
    found: list[Tree] = []

    @seeded(seed)
    @settings(
        max_examples=POOL,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(trees)
    def keep(value: Tree) -> None:
        found.append(value)

    keep()
    return found


def _places(tree: Tree) -> Iterator[tuple[Tree, Any]]:
    """Every container with a key or an index of it."""
    if isinstance(tree, (dict, list)):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key])


def _value(tree: Tree, random: Random) -> Tree:
    """A hostile value, a drawn one, or one from elsewhere in the tree."""
    match random.randrange(3):
        case 0:
            return random.choice(HOSTILE)
        case 1:
            return random.choice(drawn(0))
    container, key = random.choice(list(_places(tree)))
    return json.loads(json.dumps(container[key]))


def other_value(tree: Tree, random: Random) -> Tree:
    for _ in range(random.choice((1, 1, 1, 3))):
        container, key = random.choice(list(_places(tree)))
        container[key] = _value(tree, random)
    return tree


def missing_key(tree: Tree, random: Random) -> Tree:
    container, key = random.choice(list(_places(tree)))
    del container[key]
    return tree


def unknown_key(tree: Tree, random: Random) -> Tree:
    containers = [tree] + [container[key] for container, key in _places(tree) if isinstance(container[key], dict)]
    random.choice(containers)[random.choice(("x", "", "kind", "__class__", "0"))] = _value(tree, random)
    return tree


def other_key(tree: Tree, random: Random) -> Tree:
    container, key = random.choice([place for place in _places(tree) if isinstance(place[0], dict)])
    container[random.choice((key.upper(), f"{key} ", f"{key}_2", "x"))] = container.pop(key)
    return tree


def longer(tree: Tree, random: Random) -> Tree:
    """A list whose entries come twice, or an entry in a list of its own."""
    container, key = random.choice(list(_places(tree)))
    container[key] = container[key] * 2 if isinstance(container[key], list) else [container[key]]
    return tree


def whole_other(tree: Tree, random: Random) -> Tree:
    return _value(tree, random)


def nested(tree: Tree, random: Random) -> Tree:
    container, key = random.choice(list(_places(tree)))
    value = container[key]
    for _ in range(random.choice((3, 30, 300))):
        value = [value] if random.random() < 0.5 else {"a": value}
    container[key] = value
    return tree


TREES: dict[str, Callable[[Tree, Random], Tree]] = {
    change.__name__.replace("_", " "): change
    for change in (other_value, missing_key, unknown_key, other_key, longer, whole_other, nested)
}


def _in_json(change: Callable[[Tree, Random], Tree]) -> Mutation:
    return lambda content, random: json.dumps(change(json.loads(content), random)).encode()


def _in_yaml(change: Callable[[Tree, Random], Tree]) -> Mutation:
    def mutate(content: bytes, random: Random) -> bytes:
        return yaml.safe_dump(change(yaml.safe_load(content), random), sort_keys=False).encode()

    return mutate


def aliases(content: bytes, random: Random) -> bytes:
    """A billion of laughs, a value that holds itself, or an alias of nothing."""
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, BOMB)]
    itself = random.choice(("loop: &loop [*loop]", "loop: &loop {a: *loop}", "<<: &loop {<<: *loop}", "a: *nothing"))
    under = "data:\n  path: &loop [*loop]\n" if random.random() < 0.3 else ""
    return under.encode() + content + "\n".join(bomb if random.random() < 0.5 else [itself]).encode()


JSON: dict[str, Mutation] = {name: _in_json(change) for name, change in TREES.items()}
YAML: dict[str, Mutation] = {name: _in_yaml(change) for name, change in TREES.items()} | {"aliases": aliases}
