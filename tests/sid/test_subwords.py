import re

import numpy as np
import pytest

from sidrec.schema import ContractError
from sidrec.sid.granularity import LETTERS, PLANE, Subwords, _words, fit_subwords

SIZES = (8, 8, 8)


def world(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """200 items, some without a SID, with a popularity that falls steeply."""
    rng = np.random.default_rng(seed)
    codes_NL = rng.integers(0, 8, size=(200, 3))
    codes_NL[::17] = -1
    return codes_NL, (1000 / np.arange(1, 201)).astype(np.int64)


def subwords_of(vocabulary: int) -> tuple[Subwords, np.ndarray]:
    codes_NL, impressions_N = world()
    model = fit_subwords(codes_NL, impressions_N, SIZES, vocabulary)
    subwords = Subwords(model, SIZES)
    return subwords, subwords.rows_of(codes_NL)


@pytest.mark.parametrize("vocabulary", [25, 60, 5000])
def test_every_sid_is_cut_into_subwords_that_spell_it(vocabulary: int) -> None:
    subwords, rows_NP = subwords_of(vocabulary)
    codes_NL, _ = world()
    assert subwords.rows <= vocabulary
    assert rows_NP.max() < subwords.rows
    for codes, rows in zip(codes_NL, rows_NP, strict=True):
        used = rows[rows > 0].tolist()
        assert rows.tolist() == used + [0] * (len(rows) - len(used))
        spelled = "".join(subwords._cut.id_to_piece(used))
        assert spelled == ("" if codes[0] < 0 else _words(codes[None], SIZES)[0])


def test_a_vocabulary_of_codes_alone_gives_the_codes() -> None:
    _, rows_NP = subwords_of(25)
    codes_NL, _ = world()
    known = codes_NL[:, 0] >= 0
    assert (rows_NP[known] > 0).all()
    rows_by_code = {(level, codes_NL[n, level]): rows_NP[n, level] for n in np.flatnonzero(known) for level in range(3)}
    assert len(set(rows_by_code.values())) == len(rows_by_code) == 24
    for level in range(3):
        assert all(rows_NP[n, level] == rows_by_code[level, codes_NL[n, level]] for n in np.flatnonzero(known))


def test_popular_items_get_fewer_and_larger_subwords() -> None:
    _, rows_NP = subwords_of(60)
    codes_NL, impressions_N = world()
    known = codes_NL[:, 0] >= 0
    length_N = (rows_NP > 0).sum(axis=1)
    assert length_N[known][:20].mean() < length_N[known][-100:].mean() - 0.3
    assert (length_N * impressions_N).sum() / impressions_N[known].sum() < 2.5


def test_runs_at_the_end_of_a_sid_are_found_too() -> None:
    rng = np.random.default_rng(0)
    last = rng.integers(0, 4, size=400)
    codes_NL = np.stack([rng.integers(0, 8, size=400), last, last], axis=1)  # s23 takes four values, s12 32
    model = fit_subwords(codes_NL, np.ones(400, np.int64), SIZES, 21)
    rows_NP = Subwords(model, SIZES).rows_of(codes_NL)
    assert ((rows_NP > 0).sum(axis=1) == 2).all()
    assert len(np.unique(rows_NP[:, 1])) == 4


def test_the_same_input_gives_the_same_model_and_impressions_alone_change_it() -> None:
    codes_NL, impressions_N = world()
    order = np.random.default_rng(1).permutation(200)
    first = fit_subwords(codes_NL, impressions_N, SIZES, 60)
    assert fit_subwords(codes_NL[order], impressions_N[order], SIZES, 60) == first
    other = fit_subwords(codes_NL, impressions_N[::-1], SIZES, 60)
    assert other != first
    assert Subwords(first, SIZES).fingerprint != Subwords(other, SIZES).fingerprint


def test_codes_without_impressions_have_rows() -> None:
    codes_NL = np.array([[0, 0, 0], [0, 1, 0], [7, 7, 7]])
    subwords = Subwords(fit_subwords(codes_NL, np.array([5, 5, 0]), SIZES, 20), SIZES)
    assert (subwords.rows_of(codes_NL)[2] > 0).all()


def test_letters_are_distinct_private_use_characters() -> None:
    sizes = (PLANE - 1, 3, LETTERS - PLANE - 2)
    last = [size - 1 for size in sizes]
    words = _words(np.array([[0, 0, 0], [0, 1, 0], last]), sizes)
    assert [hex(ord(letter)) for letter in words[0]] == ["0xf0000", "0xffffd", "0x100002"]
    assert [hex(ord(letter)) for letter in words[1]] == ["0xf0000", "0x100000", "0x100002"]
    assert hex(ord(words[2][2])) == "0x10fffd"


def refused(*arguments: object) -> str:
    with pytest.raises(ContractError) as error:
        fit_subwords(*arguments)  # type: ignore[arg-type]
    return str(error.value)


def test_bad_input_is_refused() -> None:
    codes_NL, impressions_N = world()
    said = refused(codes_NL, impressions_N, SIZES, 24)
    expected = "expected at least 25, a row for each code that occurs and one for none, got 24"
    assert said == f"model.item.tokens.vocabulary: {expected}"
    said = refused(codes_NL, impressions_N * 0, SIZES, 60)
    assert re.fullmatch(r"model\.item\.tokens: expected impressions of items with a SID .*, got none", said)
    said = refused(codes_NL, impressions_N, (LETTERS, 8, 8), 60)
    assert said == f"model.item.tokens: expected at most {LETTERS} codes over all levels, got {LETTERS + 16}"
