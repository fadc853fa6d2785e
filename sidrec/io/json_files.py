"""JSON files as Python reads them, less what it lets pass: equal keys, NaN, and errors that name no file."""

import json
from pathlib import Path
from typing import Any, NoReturn

from sidrec.errors import ContractError


def read_json(path: Path, what: str) -> Any:
    """What a JSON file holds. what: names such a file in the ContractError for one that cannot be read.

    Raises ContractError also for what is no JSON, NaN among it, and for a key that is there twice.
    """

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Python keeps the last of two equal keys without a word: a table copied and not renamed."""
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ContractError(path, "every key once", f"{next(n for n in names if names.count(n) > 1)} twice")
        return found

    try:
        value = json.loads(path.read_bytes(), parse_constant=_refuse, object_pairs_hook=without_repeats)
        json.dumps(value, ensure_ascii=False).encode()  # half a character, as "\ud800" is one, is no name of anything
        return value
    except ContractError:
        raise
    except FileNotFoundError:
        raise ContractError(path, what, "no such file") from None
    except OSError as error:
        raise ContractError(path, what, error.strerror) from None
    except RecursionError:
        raise ContractError(path, "valid JSON", "values nested too deep") from None
    except ValueError as error:  # no JSON, no UTF-8, or a number of thousands of digits
        raise ContractError(path, "valid JSON", error) from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"the number {constant}")
