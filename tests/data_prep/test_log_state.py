"""Days prepared one after another with --after: the rows of one preparation of all days, without reading them again."""

import json
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.build import LogSettings
from data_prep.interactions import Columns, InteractionsCommand
from sidrec import schema
from sidrec.errors import ContractError
from tests.data_prep.event_lists import DAY, read_rows
from tests.data_prep.plain_log import Raw, plain_rows
from tests.data_prep.test_engines import hard_log
from tests.digests import digest
from tests.killed import killed_when

FLAGS: dict[str, Any] = {"history": 5, "recent_days": 7, "window_days": 9, "test_share": 0.2}
LABELS = Columns(label_column="label", cat_columns=("device",), dense_columns=("price",))
POSITIVES = Columns(cat_columns=("device",))


def three_days(seed: int = 0, *, old_items: bool = False) -> list[list[Raw]]:
    """Blocks of a hard log, each later than the one before. The second cut lies within a day whose windows reach
    the first day that the state keeps.

    old_items: every item has an event in the first block.
    """
    events = hard_log(600, days=40, seed=seed)
    times = sorted({event.second for event in events})
    days = {second // DAY for second in times}
    within_a_day = (after for before, after in pairwise(times[3 * len(times) // 4 :]) if after // DAY == before // DAY)
    at_window = (second for second in within_a_day if second // DAY - FLAGS["window_days"] in days)
    cuts = [times[len(times) // 2], next(at_window)]
    blocks = [[e for e in events if sum(e.second >= cut for cut in cuts) == number] for number in range(3)]
    if old_items:
        known = sorted({event.item for event in blocks[0]})
        blocks[1:] = [[e._replace(item=known[int(e.item[1:]) % len(known)]) for e in block] for block in blocks[1:]]
    return blocks


def write(block: Sequence[Raw], folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    columns = {
        "user_id": [event.user for event in block],
        "item_id": [event.item for event in block],
        "timestamp": pa.array([event.second for event in block], pa.int64()),
        "label": pa.array([event.label for event in block], pa.int8()),
        "device": [("tv", "web", "", f"d{event.second % 7}")[event.second // 60 % 4] for event in block],
        "price": [float(event.second % 1000) for event in block],
    }
    pq.write_table(pa.table(columns), folder / f"{name}.parquet")


class Stream:
    """Each block alone in a folder, and all blocks so far in one."""

    def __init__(self, folder: Path, blocks: list[list[Raw]], columns: Columns, **flags: Any) -> None:
        self.folder, self.blocks, self.columns, self.flags = folder, blocks, columns, {**FLAGS, **flags}
        folder.mkdir(exist_ok=True)
        for number, block in enumerate(blocks):
            write(block, folder / f"log-{number}", "part")
            for later in range(number, len(blocks)):
                write(block, folder / f"until-{later}", f"part-{number}")

    def prepare(self, log: str, out: str, **flags: Any) -> Path:
        settings = LogSettings(**{**self.flags, **flags})
        InteractionsCommand(self.folder / log, self.folder / out, self.columns, settings, "none").run()
        return self.folder / out

    def begin(self, number: int) -> str:
        return str(min(event.second for event in self.blocks[number]))

    def cut(self, number: int) -> dict[str, Any]:
        """The last quarter of the times of a block is test."""
        seconds = sorted(event.second for event in self.blocks[number])
        return {
            "test_share": None,
            "train_from": self.begin(number),
            "test_from": str(seconds[3 * len(seconds) // 4]),
        }

    def first(self, **flags: Any) -> Path:
        return self.prepare("log-0", "day-0", keep_state=True, **flags)

    def day(self, number: int, **flags: Any) -> Path:
        before = self.folder / f"day-{number - 1}"
        return self.prepare(f"log-{number}", f"day-{number}", after=before, **self.cut(number), **flags)


def check_equal(found: Path, wanted: Path) -> None:
    """Each column of each split, items.parquet and the id maps, byte by byte."""
    one, two = (schema.load_manifest(folder / "log") for folder in (found, wanted))
    assert one.splits.keys() == two.splits.keys() == {"train", "test"}
    assert (one.ids, one.id_maps, one.dense) == (two.ids, two.id_maps, two.dense)
    for split in one.splits:
        here, there = (
            pa.concat_tables([pq.read_table(folder / "log" / file.path) for file in manifest.splits[split]])
            for folder, manifest in ((found, one), (wanted, two))
        )
        assert here.num_rows > 20
        assert here.equals(there), split
    assert digest(found / "ids") == digest(wanted / "ids")
    assert pq.read_table(found / schema.ITEMS).equals(pq.read_table(wanted / schema.ITEMS))
    assert [one.protocol[key] for key in ("rows", "splits", "cold_share_of_test_rows")] == [
        two.protocol[key] for key in ("rows", "splits", "cold_share_of_test_rows")
    ]


@pytest.mark.parametrize("history", [0, 1, 5])
def test_labels_of_three_days_equal_one_preparation(history: int, tmp_path: Path) -> None:
    stream = Stream(tmp_path, three_days(history), LABELS, history=history)
    first = stream.first()
    for number in (1, 2):
        # --ids keeps the constants of the first day's dense columns, as every later day does.
        wanted = stream.prepare(f"until-{number}", f"whole-{number}", ids=first, **stream.cut(number))
        check_equal(stream.day(number), wanted)


def test_negatives_equal_one_preparation_if_no_item_is_new(tmp_path: Path) -> None:
    stream = Stream(tmp_path, three_days(old_items=True), POSITIVES, negatives=2)
    first = stream.first()
    for number in (1, 2):
        wanted = stream.prepare(f"until-{number}", f"whole-{number}", ids=first, **stream.cut(number))
        check_equal(stream.day(number), wanted)


def test_negatives_of_new_items_are_those_of_the_specification_day_by_day(tmp_path: Path) -> None:
    blocks = three_days(1)
    stream = Stream(tmp_path, blocks, Columns(), negatives=2)
    begins = [min(event.second for event in block) for block in blocks]
    folders = [stream.first(), stream.day(1), stream.day(2)]
    known = {event.item for event in blocks[0]}
    assert [len({event.item for event in block} - known) > 0 for block in blocks] == [False, True, True]
    settings = LogSettings(**FLAGS | {"negatives": 2})
    wanted = plain_rows([e for block in blocks for e in block], settings, implicit=True, later=begins[1:])
    for folder, begin, end in zip(folders, begins, (*begins[1:], 1 << 60), strict=True):
        rows = [row for row in wanted if begin <= row["timestamp"] < end]
        assert _without_split(read_rows(folder)) == _without_split(rows)


def _without_split(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "split"} for row in rows]


def test_the_manifest_says_where_it_went_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream = Stream(tmp_path, three_days(), POSITIVES)
    first, second = stream.first(), stream.day(1)
    said = schema.load_manifest(second / "log").protocol
    events, last = len(stream.blocks[0]), max(event.second for event in stream.blocks[0])
    words = said["state_from"].pop("words")  # type: ignore[attr-defined]
    assert said["state_from"] == {"folder": str(first), "events": events, "last_timestamp": last}
    assert "launch" in words
    assert said["state"]["events"] == events + len(stream.blocks[1])  # type: ignore[index]
    assert "histories" not in said["ids_from"]  # type: ignore[operator]
    assert f"go on after {events:,} earlier events" in capsys.readouterr().out


def test_the_state_keeps_no_more_than_its_windows(tmp_path: Path) -> None:
    stream = Stream(tmp_path, three_days(), POSITIVES)
    folders = [stream.first(), stream.day(1), stream.day(2)]
    for number, folder in enumerate(folders):
        last = max(event.second for event in stream.blocks[number]) // DAY
        daily, days = (pq.read_table(folder / "state" / f"{name}.parquet") for name in ("daily", "days"))
        assert min(daily["day"].to_pylist()) >= last - FLAGS["recent_days"]
        assert min(days["day"].to_pylist()) >= last - FLAGS["window_days"]
        assert pq.read_metadata(folder / "state" / "recent.parquet").num_rows == sum(days["events"].to_pylist())
        places = pq.read_table(folder / "state" / "positives.parquet")["place"].to_pylist()
        assert set(places) == {0, -1, -2, -3, -4}


@pytest.mark.parametrize("columns", [LABELS, POSITIVES], ids=["labels", "negatives"])
def test_killed_and_continued_equals_uninterrupted(columns: Columns, tmp_path: Path) -> None:
    stream = Stream(tmp_path, three_days(), columns, partition_rows=40)
    first = stream.first()
    flags = ["--after", str(first), "--keep-state", "--partition-rows", "40", "--cat-columns", "device"]
    flags += ["--history", "5", "--recent-days", "7", "--window-days", "9", "--train-from", stream.begin(1)]
    flags += ["--label-column", "label", "--dense-columns", "price"] if columns is LABELS else []
    command = ["-m", "data_prep.interactions", str(tmp_path / "log-1"), str(tmp_path / "killed"), *flags]
    killed_when(tmp_path / "killed.partial" / "data" / "state" / "items.parquet", command)
    assert not (tmp_path / "killed").exists()
    again = {"train_from": stream.begin(1), "test_share": None, "after": first, "keep_state": True}
    assert (tmp_path / "killed.partial" / "data" / "state" / "users.parquet").exists()
    stream.prepare("log-1", "killed", **again)
    stream.prepare("log-1", "straight", **again)
    assert digest(tmp_path / "killed") == digest(tmp_path / "straight")


# Refusals.


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    stream = Stream(tmp_path_factory.mktemp("shared"), three_days(), POSITIVES)
    stream.first()
    return stream


def test_earlier_events_are_refused_with_both_times(shared: Stream) -> None:
    first, last = (at(event.second for event in shared.blocks[0]) for at in (min, max))
    with pytest.raises(ContractError, match=rf"events after .*\({last}\).*{shared.folder / 'day-0'}.*\({first}\)"):
        shared.prepare("until-1", "refused", after=shared.folder / "day-0")
    write([shared.blocks[0][0]._replace(second=last)], shared.folder / "at-the-last-time", "part")
    with pytest.raises(ContractError, match="events after"):
        shared.prepare("at-the-last-time", "refused", after=shared.folder / "day-0")
    assert not list(shared.folder.glob("refused*"))


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("history", 6),
        ("recent_days", 8),
        ("seed", 1),
        ("window_days", 10),
        ("negatives", 2),
        ("floor_weight", 0.25),
        ("launch_draws", 1.0),
    ],
)
def test_other_settings_than_the_states_are_refused(shared: Stream, flag: str, value: float) -> None:
    with pytest.raises(ContractError, match=f"--{flag.replace('_', '-')}: .*as in the state of .*day-0"):
        shared.prepare("log-1", "refused", after=shared.folder / "day-0", **{flag: value})
    assert not list(shared.folder.glob("refused*"))


def test_labels_after_negatives_two_folders_and_a_folder_without_a_state_are_refused(shared: Stream) -> None:
    first = shared.folder / "day-0"
    shared.columns = LABELS
    try:
        with pytest.raises(ContractError, match="a log with positives only, with sampled negatives"):
            shared.prepare("log-1", "refused", after=first)
    finally:
        shared.columns = POSITIVES
    with pytest.raises(ContractError, match="--after, --ids"):
        shared.prepare("log-1", "refused", after=first, ids=shared.folder)
    shared.prepare("log-0", "without")
    with pytest.raises(ContractError, match="prepared with --keep-state"):
        shared.prepare("log-1", "refused", after=shared.folder / "without")


def test_damaged_and_unknown_states_are_refused(shared: Stream) -> None:
    damaged = shared.folder / "damaged"
    shutil.copytree(shared.folder / "day-0", damaged)
    file, manifest = damaged / "state" / "pairs.parquet", damaged / "log" / "manifest.json"
    pq.write_table(pq.read_table(file).slice(1), file)
    with pytest.raises(ContractError, match=r"pairs.parquet: .*rows, as the manifest says"):
        shared.prepare("log-1", "refused", after=damaged)
    file.unlink()
    with pytest.raises(ContractError, match=r"pairs.parquet"):
        shared.prepare("log-1", "refused", after=damaged)
    stated = json.loads(manifest.read_text())
    stated["protocol"]["state"]["version"] = 99
    manifest.write_text(json.dumps(stated))
    with pytest.raises(ContractError, match="a state of version 1"):
        shared.prepare("log-1", "refused", after=damaged)


def test_overwrite_takes_the_state_as_its_own(shared: Stream) -> None:
    out = shared.prepare("log-0", "again", keep_state=True)
    shared.prepare("log-0", "again", overwrite=True)
    assert not (out / "state").exists()
    shared.prepare("log-0", "again", overwrite=True, keep_state=True)
    (out / "state" / "notes.txt").write_text("mine")
    with pytest.raises(ContractError, match=r"notes.txt"):
        shared.prepare("log-0", "again", overwrite=True)
