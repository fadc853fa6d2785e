"""Every id finds its row, no other text finds one, however long or strange the texts are."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidrec.serve import id_lookup
from sidrec.serve.id_lookup import UNKNOWN, IdLookup, Texts, hashes, write_ids

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True, max_size=40)


@settings(max_examples=60, deadline=None)
@given(known=TEXTS, others=TEXTS)
def test_known_ids_have_their_rows_and_others_none(
    tmp_path_factory: pytest.TempPathFactory, known: list[str], others: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("ids")
    lookup = IdLookup(folder, write_ids(folder, Texts.of(known)))
    row_of = {text: row for row, text in enumerate(known, start=1)}
    asked = [*others, *known]
    assert lookup.rows(Texts.of(asked)).tolist() == [row_of.get(text, UNKNOWN) for text in asked]
    assert len(lookup) == len(known)


def test_many_ids_over_many_buckets(tmp_path: Path) -> None:
    known = [f"B{number:09d}" for number in range(20_000)]
    lookup = IdLookup(tmp_path, write_ids(tmp_path, Texts.of(known), first_row=7))
    asked = Texts.of([*known[::-1], *(f"C{number:09d}" for number in range(20_000))])
    assert lookup.rows(asked).tolist() == [*range(20_006, 6, -1), *[UNKNOWN] * 20_000]


def test_a_part_of_longer_texts_has_the_same_hashes() -> None:
    texts = ["", "a", "ab", "abcdefgh", "abcdefghi", "ab" * 40, "\0", "\0\0"]
    whole = Texts.of(["left out", *texts])
    part = Texts(whole.bytes_, whole.offsets[1:])
    assert hashes(part, 3).tolist() == hashes(Texts.of(texts), 3).tolist()
    assert len(set(hashes(part, 3).tolist())) == len(texts)
    assert not set(hashes(part, 4).tolist()) & set(hashes(part, 3).tolist())


def test_an_id_that_is_there_twice_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'b' at places 1 and 3"):
        write_ids(tmp_path, Texts.of(["a", "b", "c", "b"]))


def test_texts_that_collide_get_another_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def colliding(texts: Texts, seed: int) -> id_lookup.Hashes:
        return hashes(texts, seed) if seed > 1 else np.zeros(len(texts.offsets) - 1, dtype=np.uint64)

    monkeypatch.setattr(id_lookup, "hashes", colliding)
    seed = write_ids(tmp_path, Texts.of(["a", "b"]))
    assert seed == 2
    assert IdLookup(tmp_path, seed).rows(Texts.of(["b", "c", "a"])).tolist() == [2, UNKNOWN, 1]
