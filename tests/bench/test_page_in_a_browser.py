"""The bench's page as people see it, on a wide and on a narrow screen; skipped where there is no browser."""

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from sidrec.bench.page import write_page
from tests.bench.bench_results import CASES

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROBE = Path(__file__).with_name("page_probe.html")


def test_in_a_browser(tmp_path: Path) -> None:
    """Nothing sticks out or overlaps on a wide or a narrow screen, and the script sorts and chooses."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no browser here")
    pages = []
    for result in CASES.values():
        write_page(result, tmp_path / "bench.html")
        pages.append((tmp_path / "bench.html").read_text(encoding="utf-8"))
    looks = looks_of(browser, pages, tmp_path)
    for index, (name, result) in enumerate(CASES.items()):
        measured = sorted(plan.title for plan in result.plans if plan.failed is None and plan.timings)
        rated = [plan for plan in result.plans if plan.default is not None]
        for found in looks[2 * index : 2 * index + 2]:
            assert found["wide"] <= found["width"], name
            assert found["outside"] == found["clipped"] == [], name
            assert sum(found["crossings"]) == found["rows"] == 0, name
            if measured:
                assert found["before"] == found["again"] == [str(place) for place in range(1, len(measured) + 1)], name
                assert sorted(found["rising"]) == measured, name
                assert found["falling"] == found["rising"][::-1], name
                assert found["sorted"] == "descending", name
            if rated:
                assert found["options"] == len(rated), name
                assert (found["first"], found["last"]) == (["0"], [str(len(rated) - 1)]), name
                assert found["numbers"] == sum(len(each) for each in (rated, [one for one in rated if one.calibrated]))


def looks_of(browser: str, pages: list[str], folder: Path) -> list[dict[str, Any]]:
    """What the probe found of each page, on a wide and on a narrow screen."""
    probe = folder / "probe.html"
    probe.write_text(PROBE.read_text().replace("PAGES", json.dumps(pages).replace("</", "<\\/")))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command = [browser, *flags, "--virtual-time-budget=20000", "--dump-dom", probe.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    reader = _Found()
    reader.feed(done.stdout)
    assert len(reader.found) == 2 * len(pages), reader.found or done.stderr
    return reader.found


class _Found(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, Any]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "body":
            self.found = json.loads(unquote(dict(attrs).get("data-found") or "[]"))
