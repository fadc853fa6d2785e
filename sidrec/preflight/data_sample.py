"""Whether the data is sane, by a sample of its rows and of its files' checksums: what the doctor reads.

Shapes: N rows of a sampled row group.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import sqrt
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sidrec.data.rows import broken_rows, check_time_order
from sidrec.io.parquet_files import readable
from sidrec.preflight.data_checks import evenly
from sidrec.preflight.findings import Finding
from sidrec.schema import HISTORY, LABEL, TIMESTAMP, ContractError, LogFile, Manifest, crc32_of, log_schema

GROUPS = 4
"""Row groups that are read of a split."""
FILES = 4
"""Files of a split whose checksums are taken."""
APART = 2.0
"""Times that the odds of one split's label are another's before it is worth a note."""
SURE = 4.0
"""Standard errors that two rates must differ by besides."""
REPEATED = 0.01
"""Share of rows that are there twice before it is worth a note."""
NAMED = 5


@dataclass
class SplitSample:
    """rows: read, of `of`. broken: rule -> rows that break it. disorder: of times, in words."""

    rows: int
    of: int
    positives: int = 0
    repeated: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    disorder: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.positives / max(1, self.rows)


def read_sample(log: Path, manifest: Manifest, split: str, *, whole: bool) -> SplitSample:
    """Some row groups of a split, at equal distances, or all. Raises ContractError for one that cannot be read."""
    sample = SplitSample(0, manifest.rows(split))
    for where, table in _groups(log, manifest, manifest.files(split), whole):
        sample.rows += len(table)
        sample.positives += int((table[LABEL].to_numpy(zero_copy_only=False) > 0).sum())
        for rule, broken_N in broken_rows(table, manifest).items():
            sample.broken[rule] += int(broken_N.sum())
        keys = table.drop_columns([HISTORY])  # of rows that are alike in all else, histories are as well
        sample.repeated += len(table) - keys.group_by(keys.column_names).aggregate([]).num_rows
        try:
            check_time_order(table[TIMESTAMP].to_numpy(), where)
        except ContractError as error:
            sample.disorder.append(str(error))
    return sample


def _groups(log: Path, manifest: Manifest, files: Sequence[LogFile], whole: bool) -> Iterator[tuple[str, pa.Table]]:
    columns = log_schema(manifest).names
    chosen = evenly(files, None if whole else GROUPS)
    for number, file in enumerate(chosen):
        with readable(log / file.path, "readable rows"), pq.ParquetFile(log / file.path) as opened:
            groups = range(opened.num_row_groups)
            if not whole:
                wanted = GROUPS // len(chosen) + (number < GROUPS % len(chosen))
                groups = groups[:: max(1, -(-len(groups) // wanted))]
            for group in groups:
                where = f"{log / file.path}, row group {group}"
                yield where, opened.read_row_group(group, columns=columns).combine_chunks()


def sample_findings(samples: dict[str, SplitSample]) -> list[Finding]:
    """samples: split -> sample, read by `read_sample`."""
    told = "; ".join(f"{sample.rows:,} of {sample.of:,} rows of {split}" for split, sample in samples.items())
    broken = [
        f"{split}: {rows:,} rows break column {rule.removeprefix('column ')}"
        for split, sample in samples.items()
        for rule, rows in sample.broken.items()
    ]
    broken += [sentence for sample in samples.values() for sentence in sample.disorder]
    rows = Finding("sampled rows", "ok", f"keep the contract ({told})")
    if broken:
        more = f"; and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        rows = Finding(
            "sampled rows", "problem", f"{'; '.join(broken[:NAMED])}{more} ({told})", "prepare the log again"
        )
    return [rows, _rates(samples), _repeats(samples)]


def _rates(samples: dict[str, SplitSample]) -> Finding:
    told = ", ".join(f"{split} {sample.rate:.2%}" for split, sample in samples.items())
    if any(not 0 < sample.positives < sample.rows for sample in samples.values()):
        return Finding("label rates", "problem", f"expected zeros and ones in every split, got {told} positive")
    apart = any(_apart(first, second) for first, second in combinations(samples.values(), 2))
    return Finding("label rates", "note" if apart else "ok", f"{told} positive{', far apart' if apart else ''}")


def _apart(first: SplitSample, second: SplitSample) -> bool:
    odds = [sample.rate / (1 - sample.rate) for sample in (first, second)]
    error = sqrt(sum(sample.rate * (1 - sample.rate) / sample.rows for sample in (first, second)))
    return max(odds) / min(odds) > APART and abs(first.rate - second.rate) > SURE * error


def _repeats(samples: dict[str, SplitSample]) -> Finding:
    shares = {split: sample.repeated / max(1, sample.rows) for split, sample in samples.items()}
    told = ", ".join(f"{split} {share:.2%}" for split, share in shares.items())
    return Finding("repeated rows", "note" if max(shares.values()) > REPEATED else "ok", f"{told} of the sample")


def checksum_finding(log: Path, manifest: Manifest, splits: Sequence[str], *, whole: bool) -> Finding:
    """Compares files with the manifest's checksums: a sample at equal distances, or all."""
    every = [file for split in splits for file in manifest.files(split)]
    chosen = [file for split in splits for file in evenly(manifest.files(split), None if whole else FILES)]
    told = [file for file in chosen if file.crc32 is not None]
    if not told:
        return Finding("checksums", "note", "none in the manifest: files that changed since cannot be told")
    changed = [file for file in told if _crc32(log / file.path) != file.crc32]
    if changed:
        first = changed[0]
        found = f"expected the CRC-32 {first.crc32} of the manifest, got {_crc32(log / first.path)}"
        return Finding(
            "checksums", "problem", f"{log / first.path}: {found}; {len(changed)} of {len(told)} files differ"
        )
    return Finding("checksums", "ok", f"{len(told)} of {len(every)} files are what was written")


def _crc32(path: Path) -> int:
    try:
        return crc32_of(path)
    except OSError as error:
        raise ContractError(path, "a readable file", error.strerror) from None
