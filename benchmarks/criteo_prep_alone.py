"""One preparation of a Criteo log in a process of its own: `python -m benchmarks.criteo_prep_alone NAME SOURCE OUT`.

Prints CPU seconds and peak memory as JSON. Imports little, so that the figures are the preparation's.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

Prepare = Callable[[Path, Path], None]
WARM_ROWS = 10


def with_vocabulary(source: Path, out: Path) -> None:
    from data_prep.criteo import CriteoCommand

    CriteoCommand((source, out)).run()


def with_hashing(source: Path, out: Path) -> None:
    from data_prep.criteo import CriteoCommand

    CriteoCommand((source, out), hash_rows=1_000_000).run()


def torchrec_script(source: Path, out: Path) -> None:
    with_plain_files()
    from torchrec.datasets.criteo import BinaryCriteoUtils

    out.mkdir()
    names = [str(out / f"day_0_{kind}.npy") for kind in ("dense", "sparse", "labels")]
    BinaryCriteoUtils.tsv_to_npys(str(source), *names)


def with_plain_files() -> None:
    """Replaces iopath, which TorchRec's Criteo code imports but does not install, by the built-in open."""

    class PathManager:
        open = staticmethod(open)

        def set_strict_kwargs_checking(self, enable: bool) -> None:
            pass

    class PathManagerFactory:
        def get(self, key: str) -> PathManager:
            return PathManager()

    module: Any = ModuleType("iopath.common.file_io")
    module.PathManagerFactory = PathManagerFactory
    sys.modules |= {
        "iopath": ModuleType("iopath"),
        "iopath.common": ModuleType("iopath.common"),
        module.__name__: module,
    }


CONTENDERS: dict[str, Prepare] = {
    "sidrec, vocabulary": with_vocabulary,
    "sidrec, hashing": with_hashing,
    "torchrec tsv_to_npys": torchrec_script,
}


def measure(name: str, source: Path, out: Path) -> dict[str, float]:
    """CPU seconds, and peak MiB of this process before and after.

    out: an empty folder. A first preparation of a few rows pays for imports and first calls.
    """
    with source.open("rb") as file:
        (out / "first.txt").write_bytes(b"".join(file.readline() for _ in range(WARM_ROWS)))
    CONTENDERS[name](out / "first.txt", out / "warm")
    before, start = peak_mib(), time.process_time()
    CONTENDERS[name](source, out / "out")
    return {"cpu_s": time.process_time() - start, "before_mib": before, "peak_mib": peak_mib()}


def peak_mib() -> float:
    """Of this program alone; getrusage would count what the parent held when it started us."""
    status = Path("/proc/self/status").read_text()
    return round(int(status.partition("VmHWM:")[2].split()[0]) / 1024, 1)


if __name__ == "__main__":
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
