"""Damage to text: what editors, spreadsheets, encodings and hostile hands do to CSV, JSON and YAML."""

import re
from random import Random

from benchmarks.fuzz.byte_mutations import Mutation

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
