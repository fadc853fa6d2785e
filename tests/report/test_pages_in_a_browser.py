"""Reports as people see them, on a wide and on a narrow screen; skipped where there is no browser."""

import shutil
from pathlib import Path

import pytest

from sidrec.report.compare import compare, write_page
from sidrec.report.run_page import write_report
from sidrec.report.study_page import write_study_page
from tests.bench.test_page_in_a_browser import BROWSERS, looks_of
from tests.report.made_up_run import made_up_run, predictions
from tests.report.made_up_study import LEADS, made_up_searches, made_up_study
from tests.small_log import write_small_log


def test_in_a_browser(tmp_path: Path) -> None:
    """Nothing sticks out, is cut off or overlaps."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no browser here")
    folder = write_small_log(tmp_path)
    long = "a_name_of_a_run_that_is_longer_than_most/and-has-parts"
    runs = {
        "whole": made_up_run(folder, "whole", skipped=(3, 9)),
        "hid": made_up_run(folder, long.replace("/", "_"), 0.2, kind="hid"),
        "begun": made_up_run(folder, "begun", evaluated=False),
        "two_rows": made_up_run(folder, "two_rows", scored=predictions(1.0, rows=2)),
    }
    pages = {name: write_report(run, tmp_path / f"{name}.html") for name, run in runs.items()}
    pages["comparison"] = write_page(compare([runs["whole"], runs["hid"]], "test"), tmp_path / "comparison.html")
    pages["study"] = write_study_page(made_up_study(), made_up_searches(), tmp_path / "study.html")
    many = made_up_study(("beauty",), {**LEADS, **{f"a_variant_of_many_{n}": 0.03 + n / 2000 for n in range(18)}})
    pages["study of many"] = write_study_page(many, {}, tmp_path / "many.html")
    looks = looks_of(browser, [page.read_text(encoding="utf-8") for page in pages.values()], tmp_path)
    for index, name in enumerate(pages):
        for found in looks[2 * index : 2 * index + 2]:
            assert found["wide"] <= found["width"], name
            assert found["outside"] == found["clipped"] == [], name
            assert sum(found["crossings"]) == found["rows"] == 0, (name, found)
