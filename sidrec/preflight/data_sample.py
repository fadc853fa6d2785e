"""Checks of the data by a sample of rows, file checksums and digests of id maps. Only the doctor runs them.

Shapes: N rows of a sampled row group.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import sqrt

import pyarrow as pa

from sidrec.data.rows import broken_rows, check_time_order
from sidrec.id_maps import IdMaps, source_ids
from sidrec.io.files import readable
from sidrec.io.parquet_places import open_parquet
from sidrec.io.places import Place
from sidrec.preflight import Finding
from sidrec.preflight.data_checks import evenly
from sidrec.schema import HISTORY, LABEL, TIMESTAMP, ContractError, LogFile, Manifest, crc32_of, log_schema

GROUPS = 4
"""Row groups that are read from each split."""
FILES = 4
"""Files of each split whose checksums are compared."""
ODDS_RATIO = 2.0
"""A larger ratio between the label odds of two splits is a note,"""
STANDARD_ERRORS = 4.0
"""if the rates also differ by more standard errors than this."""
REPEATED = 0.01
"""A larger share of duplicate rows is a note."""
LISTED = 5
"""Faults that a finding lists."""


@dataclass
class SplitSample:
    """`rows` sampled rows of the `of` rows of a split.

    repeated: rows that duplicate another row of their row group. broken: contract rule -> rows that break it.
    disorder: messages on rows that are not sorted by time.
    """

    rows: int
    of: int
    positives: int = 0
    repeated: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    disorder: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.positives / max(1, self.rows)


def read_sample(log: Place, manifest: Manifest, split: str, *, whole: bool, label: str = LABEL) -> SplitSample:
    """Reads GROUPS row groups of a split at equal distances, or all if `whole`.

    Raises ContractError for a file that cannot be read.
    """
    sample = SplitSample(0, manifest.rows(split))
    for where, table in _groups(log, manifest, manifest.files(split), whole):
        sample.rows += len(table)
        sample.positives += int((table[label].to_numpy(zero_copy_only=False) > 0).sum())
        for rule, broken_N in broken_rows(table, manifest).items():
            sample.broken[rule] += int(broken_N.sum())
        # Rows that agree in all other columns agree in their lists too.
        keys = table.drop_columns([HISTORY, *manifest.lists])
        sample.repeated += len(table) - keys.group_by(keys.column_names).aggregate([]).num_rows
        try:
            check_time_order(table[TIMESTAMP].to_numpy(), where)
        except ContractError as error:
            sample.disorder.append(str(error))
    return sample


def _groups(log: Place, manifest: Manifest, files: Sequence[LogFile], whole: bool) -> Iterator[tuple[str, pa.Table]]:
    columns = log_schema(manifest).names
    chosen = evenly(files, None if whole else GROUPS)
    for number, file in enumerate(chosen):
        with readable(log / file.path, "readable rows"), open_parquet(log / file.path) as opened:
            groups = range(opened.num_row_groups)
            if not whole:
                wanted = GROUPS // len(chosen) + (number < GROUPS % len(chosen))
                groups = groups[:: max(1, -(-len(groups) // wanted))]
            for group in groups:
                where = f"{log / file.path}, row group {group}"
                yield where, opened.read_row_group(group, columns=columns).combine_chunks()


def sample_findings(samples: dict[str, SplitSample]) -> list[Finding]:
    """Findings on broken rows, label rates and duplicates. samples: by split."""
    read = "; ".join(f"{sample.rows:,} of {sample.of:,} rows of {split}" for split, sample in samples.items())
    broken = [
        f"{split}: {rows:,} rows break column {rule.removeprefix('column ')}"
        for split, sample in samples.items()
        for rule, rows in sample.broken.items()
    ]
    broken += [message for sample in samples.values() for message in sample.disorder]
    rows = Finding("sampled rows", "ok", f"keep the contract ({read})")
    if broken:
        more = f"; and {len(broken) - LISTED} more" if len(broken) > LISTED else ""
        rows = Finding(
            "sampled rows", "problem", f"{'; '.join(broken[:LISTED])}{more} ({read})", "prepare the log again"
        )
    return [rows, _rates(samples), _repeats(samples)]


def _rates(samples: dict[str, SplitSample]) -> Finding:
    rates = ", ".join(f"{split} {sample.rate:.2%}" for split, sample in samples.items())
    if any(not 0 < sample.positives < sample.rows for sample in samples.values()):
        return Finding("label rates", "problem", f"expected zeros and ones in every split, got {rates} positive")
    apart = any(_apart(first, second) for first, second in combinations(samples.values(), 2))
    return Finding("label rates", "note" if apart else "ok", f"{rates} positive{', far apart' if apart else ''}")


def _apart(first: SplitSample, second: SplitSample) -> bool:
    odds = [sample.rate / (1 - sample.rate) for sample in (first, second)]
    error = sqrt(sum(sample.rate * (1 - sample.rate) / sample.rows for sample in (first, second)))
    return max(odds) / min(odds) > ODDS_RATIO and abs(first.rate - second.rate) > STANDARD_ERRORS * error


def _repeats(samples: dict[str, SplitSample]) -> Finding:
    shares = {split: sample.repeated / max(1, sample.rows) for split, sample in samples.items()}
    listed = ", ".join(f"{split} {share:.2%}" for split, share in shares.items())
    return Finding("repeated rows", "note" if max(shares.values()) > REPEATED else "ok", f"{listed} of the sample")


def checksum_finding(log: Place, manifest: Manifest, splits: Sequence[str], *, whole: bool) -> Finding:
    """Compares the CRC-32 of FILES files of each split, or of all if `whole`, with the manifest."""
    every = [file for split in splits for file in manifest.files(split)]
    chosen = [file for split in splits for file in evenly(manifest.files(split), None if whole else FILES)]
    recorded = [file for file in chosen if file.crc32 is not None]
    if not recorded:
        return Finding("checksums", "note", "none in the manifest: files that changed since cannot be found")
    changed = [file for file in recorded if _crc32(log / file.path) != file.crc32]
    if changed:
        first = changed[0]
        found = f"expected the CRC-32 {first.crc32} of the manifest, got {_crc32(log / first.path)}"
        return Finding(
            "checksums", "problem", f"{log / first.path}: {found}; {len(changed)} of {len(recorded)} files differ"
        )
    return Finding("checksums", "ok", f"{len(recorded)} of {len(every)} files are what was written")


def id_map_findings(data: Place, manifest: Manifest) -> list[Finding]:
    """Compares the digests of all id maps with the manifest; empty where the folder has no maps."""
    if not manifest.id_maps:
        return []
    try:
        for column in manifest.id_maps:
            source_ids(data, column)
    except ContractError as error:
        return [Finding("id maps", "problem", f"{error}", "prepare the log again")]
    fingerprint = IdMaps(manifest.id_maps).fingerprint
    return [Finding("id maps", "ok", f"{len(manifest.id_maps)} are what was written (fingerprint {fingerprint})")]


def _crc32(path: Place) -> int:
    try:
        return crc32_of(path)
    except OSError as error:
        raise ContractError(path, "a readable file", error.strerror) from None
