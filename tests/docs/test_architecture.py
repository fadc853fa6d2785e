"""Pages name files that exist; the architecture page answers each question with no more files than allowed."""

import re

from docs.count_lines import PAGE, ROOT, lines_of, questions
from tests.docs.pages import PAGES

MOST = {"step": 2, "run put together": 3, "log row": 5, "logit": 6, "checkpoint": 4, "gate": 2, "alignment": 2}
MOST |= {"learner": 3, "metric or": 2, "plan come": 4, "a verdict": 4, "exported": 3, "URI": 3}


def test_files_and_lines() -> None:
    rows = questions(PAGE.read_text())
    assert len(rows) == len(MOST)
    for question, files, lines in rows:
        (most,) = (limit for words, limit in MOST.items() if words in question)
        assert 0 < len(files) <= most, question
        assert abs(lines_of(files) - lines) <= 0.2 * lines, f"{question}: run python docs/count_lines.py"


def test_files_that_pages_name_exist() -> None:
    folders = "sidrec|data_prep|launch|tests|benchmarks|docs|examples|requirements"
    pages = [ROOT / page for page in PAGES] + [ROOT / "CONTRIBUTING.md"]
    named = {
        (page.name, file)
        for page in pages
        for file in re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)[`:]", page.read_text())
        if "NAME" not in file
    }
    assert len(named) > 50
    assert [f"{page}: {file}" for page, file in sorted(named) if not (ROOT / file).exists()] == []
