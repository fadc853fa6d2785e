"""Damage to what JSON and YAML say: keys and values that are none, of another type, or beyond any bound."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from random import Random
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from benchmarks.fuzz.byte_mutations import Mutation

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
