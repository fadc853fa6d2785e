"""sidrec: ranking with hashed item IDs (HIDs) and semantic IDs (SIDs) on TorchRec.

What users may import:

* `sidrec.Recipe`, `sidrec.load_file`, `sidrec.load`: recipes (`sidrec.config`)
* `sidrec.Catalog`, `sidrec.load_catalog`: semantic IDs (`sidrec.sid.catalog`)
* `sidrec.SidrecError` and its subclasses (`sidrec.errors`)
* the modules `sidrec.plug`, `sidrec.metrics` and `sidrec.data.criteo`
* `sidrec.serve.scorer.Scorer`, which needs numpy and onnxruntime alone
* functions of `sidrec.sid.learners.registry` and `sidrec.plans.plan_file` that docs/api.md lists

The rest may change. Names are imported when they are used, so that `import sidrec` stays light.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sidrec.config import Recipe as Recipe
    from sidrec.config import load as load
    from sidrec.config import load_file as load_file
    from sidrec.errors import SidrecError as SidrecError
    from sidrec.sid.catalog import Catalog as Catalog
    from sidrec.sid.catalog import load_catalog as load_catalog

__version__ = "0.2.0"

_HOMES = {
    "Catalog": "sidrec.sid.catalog",
    "Recipe": "sidrec.config",
    "SidrecError": "sidrec.errors",
    "load": "sidrec.config",
    "load_catalog": "sidrec.sid.catalog",
    "load_file": "sidrec.config",
}


def imported_when_used(module: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """`__getattr__` of `module` (PEP 562): takes the names of `homes` from the modules that `homes` gives."""

    def imported(name: str) -> Any:
        if name in homes:
            return getattr(import_module(homes[name]), name)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return imported


__getattr__ = imported_when_used(__name__, _HOMES)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
