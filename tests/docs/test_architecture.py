"""The architecture page answers its questions with files that exist, and not with more than it may."""

from docs.count_lines import PAGE, lines_of, questions

MOST = {"step": 2, "run put together": 3, "log row": 5, "logit": 6, "checkpoint": 4, "gate": 2, "alignment": 2}
MOST |= {"learner": 3, "metric or": 2, "plan come": 4}


def test_files_and_lines() -> None:
    rows = questions(PAGE.read_text())
    assert len(rows) == len(MOST)
    for question, files, lines in rows:
        (most,) = (limit for words, limit in MOST.items() if words in question)
        assert 0 < len(files) <= most, question
        assert abs(lines_of(files) - lines) <= 0.2 * lines, f"{question}: run python docs/count_lines.py"
