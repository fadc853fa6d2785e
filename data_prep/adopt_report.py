"""Problems of a log that another program wrote: collected while it is checked, printed as one report.

A problem is a rule of the contract that something breaks, with the number of rows or files that break it, the first
of them, and what to change. `type_remedy` names the Spark expression for a column of another type.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

import pyarrow as pa

from sidrec import schema

FIXED = {
    schema.LABEL: pa.float32(),
    schema.TIMESTAMP: pa.int64(),
    schema.USER_ID: pa.int64(),
    schema.ITEM_ID: pa.int64(),
    schema.HISTORY: pa.list_(pa.int64()),
}
"""Columns that every log has, and their types."""
NUMBERS = (schema.DENSE_PREFIX, schema.STAT_PREFIX, schema.LABEL_PREFIX)
"""Prefixes of float32 columns."""


@dataclass(frozen=True)
class Fault:
    """A broken rule, such as "column label: expected 0 or 1".

    count: rows or files (`what`) that break it. examples: the first of them, with what was found. remedy: what to
    change; "" if the rule says it.
    """

    rule: str
    count: int
    what: str
    examples: tuple[str, ...]
    remedy: str = ""


@dataclass
class Problems:
    """All broken rules, in the order in which they were found. shown: examples kept of each."""

    shown: int
    faults: dict[str, Fault] = field(default_factory=dict)

    def add(self, faults: Iterable[Fault]) -> None:
        """Adds faults; those of a known rule are counted together."""
        for new in faults:
            known = self.faults.get(new.rule)
            if known is None:
                self.faults[new.rule] = Fault(new.rule, new.count, new.what, new.examples[: self.shown], new.remedy)
            else:
                examples = (*known.examples, *new.examples)[: self.shown]
                self.faults[new.rule] = Fault(new.rule, known.count + new.count, new.what, examples, known.remedy)

    def found(self, rule: str, where: object, got: object, remedy: str = "", what: str = "files") -> None:
        """Adds one fault, of one file or row."""
        self.add([Fault(rule, 1, what, (f"{where}: {got}" if str(got) else f"{where}",), remedy)])

    def __bool__(self) -> bool:
        return bool(self.faults)

    def number(self) -> str:
        """ "1 problem", "7 problems"."""
        return f"{len(self.faults)} problem{'s' * (len(self.faults) != 1)}"

    def text(self) -> str:
        """The report: a numbered rule, its examples below it, and what to change."""
        lines = []
        for number, fault in enumerate(self.faults.values(), start=1):
            what = fault.what.removesuffix("s") if fault.count == 1 else fault.what
            lines.append(f"{number:3}. {fault.rule} ({fault.count:,} {what})")
            lines += [f"       {example}" for example in fault.examples]
            more = fault.count - len(fault.examples)
            lines += [f"       and {more:,} more"] if more > 0 else []
            lines += [f"     change: {fault.remedy}"] if fault.remedy else []
        return "\n".join(lines)


# Types.


def contract_type(name: str, found: pa.DataType | None) -> pa.DataType | None:
    """The type that the contract gives a column, None if it does not know the column.

    found: the type that a file has, which decides whether a cat_* column holds one id or lists.
    """
    if name in FIXED:
        return FIXED[name]
    if name.startswith(NUMBERS):
        return pa.float32()
    if name.startswith(schema.CATEGORICAL_PREFIX):
        return pa.list_(pa.int64()) if found is not None and is_list(found) else pa.int64()
    return None


def is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def castable(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of another type can be checked all the same, as if they had been cast."""
    if is_list(found) and is_list(wanted):
        return castable(found.value_type, wanted.value_type)
    if pa.types.is_integer(wanted):
        return bool(pa.types.is_integer(found) or pa.types.is_timestamp(found))
    numeric = pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_boolean(found)
    return bool(pa.types.is_floating(wanted) and numeric)


def type_remedy(name: str, found: pa.DataType, wanted: pa.DataType) -> str:
    """The Spark expression that gives the column its type, or what the job must do where no cast is enough."""
    column = f'F.col("{name}")'
    found = found.value_type if pa.types.is_dictionary(found) else found  # as pandas writes categories
    if is_list(wanted):
        if is_list(found) and not castable(found.value_type, wanted.value_type):
            return f"number the entries of {name} from 1 up, as examples/spark_log.py does"
        cast = {True: f'{column}.cast("array<bigint>")', False: f'F.split({column}, ",").cast("array<bigint>")'}
        if not is_list(found) and not pa.types.is_string(found):
            return f'Spark: .withColumn("{name}", F.array({column}.cast("bigint")))'
        return f'Spark: .withColumn("{name}", {cast[is_list(found)]})'
    if pa.types.is_integer(wanted):
        if pa.types.is_timestamp(found) or pa.types.is_date(found):
            return f'Spark: .withColumn("{name}", {column}.cast("timestamp").cast("bigint"))  # seconds since 1970'
        if pa.types.is_string(found) or pa.types.is_binary(found) or is_list(found):
            return f"{name} is a whole number: number the values from 1 up, as examples/spark_log.py does"
        return f'Spark: .withColumn("{name}", {column}.cast("bigint"))'
    rounded = "  # rounds to 24 bits" if pa.types.is_float64(found) else ""
    return f'Spark: .withColumn("{name}", {column}.cast("float")){rounded}'


def missing_remedy(name: str, there: Sequence[str], path: str) -> str:
    """What to do about a column that a file lacks. there: its columns. path: of the file."""
    if any(part.startswith(f"{name}=") for part in path.split("/")):
        return f"Spark leaves columns of partitionBy out of the files: partition by a copy of {name}"
    spelled = {other.lower().replace("_", ""): other for other in there if contract_type(other, None) is None}
    near = get_close_matches(name.replace("_", ""), list(spelled), n=1, cutoff=0.75)
    if near:
        return f'Spark: .withColumnRenamed("{spelled[near[0]]}", "{name}")'
    if name == schema.HISTORY:
        return 'without histories: .withColumn("history", F.array().cast("array<bigint>"))'
    return ""
