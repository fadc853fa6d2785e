"""Saves and restores a tree of dataclasses whose leaves are numpy arrays, numbers and text, in one .npz file."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def save_snapshot(path: Path, **roots: object) -> None:
    """Writes the trees in one step: the file is whole or absent."""
    arrays: dict[str, np.ndarray] = {}
    for name, root in roots.items():
        _flatten(name, root, arrays)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    partial.replace(path)


def load_snapshot(path: Path) -> dict[str, np.ndarray]:
    """All leaves by dotted name."""
    with np.load(path) as stored:
        return dict(stored)


def restore(template: T, name: str, arrays: dict[str, np.ndarray]) -> T:
    """A tree of the template's shape with the leaves saved under `name`."""
    if not is_dataclass(template):
        leaf: Any = arrays[name]
        return leaf if isinstance(template, np.ndarray) else leaf.item()
    parts = {f.name: restore(getattr(template, f.name), f"{name}.{f.name}", arrays) for f in fields(template)}
    tree: Any = type(template)
    return tree(**parts)


def _flatten(name: str, node: object, arrays: dict[str, np.ndarray]) -> None:
    if is_dataclass(node):
        for field in fields(node):
            _flatten(f"{name}.{field.name}", getattr(node, field.name), arrays)
    else:
        arrays[name] = np.asarray(node)
