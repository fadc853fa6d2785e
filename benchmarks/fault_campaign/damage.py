"""What can happen to a run's files between two starts."""

import random
from pathlib import Path

NEWEST_FLIPPED, NEWEST_CUT, NEWEST_WITHOUT_INDEX = "newest: a bit flipped", "newest: cut", "newest: no index"
LEFT_OVER = "a half-written checkpoint left over"
NEEDS = {NEWEST_FLIPPED: 2, NEWEST_CUT: 2, NEWEST_WITHOUT_INDEX: 2, LEFT_OVER: 0}
"""Damage -> sound checkpoints that must be there for a run to be able to go on."""


def checkpoints(run: Path) -> list[Path]:
    """The run's complete checkpoints, oldest first."""
    found = [path for path in (run / "checkpoints").glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(found, key=_step)


def damage(run: Path, draw: random.Random) -> str:
    """Damages something that a run survives; says what, or "" where there is nothing to damage."""
    there = checkpoints(run)
    possible = [kind for kind, needed in NEEDS.items() if (run / "checkpoints").is_dir() and len(there) >= needed]
    if not possible:
        return ""
    kind = draw.choice(possible)
    match kind:
        case "newest: a bit flipped":
            _flip(_largest(there[-1]), draw)
        case "newest: cut":
            path = _largest(there[-1])
            path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])
        case "newest: no index":
            (there[-1] / "index.json").unlink()
        case _:
            partial = run / "checkpoints" / f"step-{(_step(there[-1]) if there else 0) + 7}.partial"
            partial.mkdir(exist_ok=True)
            (partial / "rank-0.safetensors").write_bytes(draw.randbytes(1000))
    return kind


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _largest(folder: Path) -> Path:
    return max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)


def _flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
