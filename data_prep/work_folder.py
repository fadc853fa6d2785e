"""OUT.partial: where a data folder grows until it is whole, and what an interrupted run left there."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sidrec.schema import ContractError

CONFIGURATION = "configuration.json"


@dataclass(frozen=True)
class WorkFolder:
    """`data` becomes OUT in one rename; `scratch` is deleted then."""

    out: Path

    @property
    def partial(self) -> Path:
        return self.out.with_name(self.out.name + ".partial")

    @property
    def data(self) -> Path:
        return self.partial / "data"

    @property
    def scratch(self) -> Path:
        return self.partial / "scratch"

    @classmethod
    def open(cls, out: Path, configuration: Mapping[str, object], overwrite: bool) -> "WorkFolder":
        """Continues what an equal configuration left unfinished; another configuration's leftovers are deleted.

        Raises ContractError when OUT exists and must not be overwritten, or OUT.partial is not ours.
        """
        work = cls(out)
        if out.exists() and not overwrite:
            raise ContractError(out, "no such folder yet (or the flag --overwrite)", "one that exists")
        wanted = json.dumps(configuration, indent=1, sort_keys=True, default=str)
        found = work.partial / CONFIGURATION
        if work.partial.exists() and not found.is_file():
            raise ContractError(work.partial, "no such folder, or an unfinished run's", "something else")
        if found.is_file() and found.read_text() != wanted:
            shutil.rmtree(work.partial)
        work.partial.mkdir(parents=True, exist_ok=True)
        found.write_text(wanted)
        work.data.mkdir(exist_ok=True)
        work.scratch.mkdir(exist_ok=True)
        return work

    def discard(self) -> None:
        """Gives the unfinished work up."""
        shutil.rmtree(self.partial)

    def publish(self) -> None:
        """Puts the finished data folder in OUT's place and removes everything else."""
        replaced = self.partial / "replaced"
        if self.out.exists():
            self.out.rename(replaced)
        self.data.rename(self.out)
        shutil.rmtree(self.partial)


def file_facts(files: tuple[Path, ...]) -> list[tuple[str, int, int]]:
    """Name, size and modification time of the inputs. Raises ContractError for one that is missing."""
    facts = []
    for file in files:
        if not file.is_file():
            raise ContractError(file, "a file to read", "none")
        facts.append((str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns))
    return facts
