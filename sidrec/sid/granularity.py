"""From SIDs to rows of embedding tables: by granularity (SID-Coord, arXiv 2604.10471, module I), or by subword.

A granularity joins one level or adjacent levels into one feature. Subwords are runs of codes that occur often together
(SPM-SID, arXiv 2306.08121): a SID is a word, the code at a level a letter, and SentencePiece learns the subwords.

Shapes: N or I items, L levels, S distinct SIDs, P subwords of the SID with the most.
"""

import hashlib
import io
from collections.abc import Sequence

import numpy as np

from sidrec.config.section import granularity_levels
from sidrec.schema import ContractError

RADIX = 10_000
"""Bx of the paper: above its 8,192 codes per level, so that composed ids are unique, and easy to read."""


def radix_ids(codes_IL: np.ndarray, name: str) -> np.ndarray:
    """The paper's composed id, s12 = Bx * s1 + s2, for every item.

    codes_IL: integer codes in [0, 10000), or -1 in a whole row for an item without a SID.
    Returns: int64 [I], -1 where the item has no SID.
    Raises ContractError when the granularity needs levels that the codes lack, or a code does not fit the radix;
    ValueError for a malformed name.

    >>> radix_ids(np.array([[8191, 8191, 8191], [-1, -1, -1]]), "s23").tolist()
    [81918191, -1]
    """
    levels = granularity_levels(name)
    if levels[-1] > codes_IL.shape[1]:
        raise ContractError(f"granularity {name}", f"levels among the {codes_IL.shape[1]} of the catalog", levels[-1])
    part = codes_IL[:, levels[0] - 1 : levels[-1]].astype(np.int64)
    if part.size and part.max() >= RADIX:
        raise ContractError(f"granularity {name}", f"codes below the radix {RADIX}", int(part.max()))
    weights = RADIX ** np.arange(len(levels) - 1, -1, -1, dtype=np.int64)
    return np.where((part < 0).any(axis=1), -1, part @ weights)


def granularity_rows(codes_IL: np.ndarray, name: str, extension_I: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """The table row of every item: an exact, dense numbering of the composed ids that occur.

    Raw composed ids reach 81,918,191, so a table indexed by them would be almost empty. Rows have the order of the
    composed ids, so that the numbering depends on the codes alone. In an extended catalog, ids that an extension brings
    follow all earlier ones, so that no row moves: tables that were trained before it grow at their end.

    codes_IL: see `radix_ids`; usually `Catalog.codes_by_id(...)`, so that the result is indexed by item id.
    extension_I: int64, `Catalog.extension_by_id(...)`; None: no extensions.
    Returns: (rows_I, table_rows): int64 [I], where row 0 is reserved for items without a SID and for padding; and the
    number of rows that the table needs, row 0 included.
    """
    ids_I = radix_ids(codes_IL, name)
    observed, rows_I = np.unique(ids_I, return_inverse=True)
    starts_unknown = bool(len(observed)) and bool(observed[0] == -1)
    offset = 0 if starts_unknown else 1
    if extension_I is not None and extension_I.any():
        rows_I = _by_extension(rows_I, len(observed), extension_I, starts_unknown)
    return rows_I.astype(np.int64) + offset, len(observed) + offset


def _by_extension(rows_I: np.ndarray, rows: int, extension_I: np.ndarray, starts_unknown: bool) -> np.ndarray:
    """Sorts rows by the first extension that has them; rows of the same extension keep their order."""
    first_R = np.full(rows, np.iinfo(np.int64).max)
    np.minimum.at(first_R, rows_I, extension_I)
    if starts_unknown:
        first_R[0] = -1
    place_R = np.empty(rows, np.int64)
    place_R[np.argsort(first_R, kind="stable")] = np.arange(rows)
    moved_I: np.ndarray = place_R[rows_I]
    return moved_I


def rows_by_extension(rows_I: np.ndarray, extension_I: np.ndarray, extensions: int) -> list[int]:
    """How many rows the table of a granularity needs after each extension from 0, the fit, to `extensions` - 1.

    rows_I: as `granularity_rows` returns them.
    """
    last_E = np.zeros(extensions, np.int64)
    np.maximum.at(last_E, extension_I, rows_I)
    rows: list[int] = (1 + np.maximum.accumulate(last_E)).tolist()
    return rows


PLANE = 65_534  # private-use characters in a Unicode plane; each is a letter, one code at one level
LETTERS = 2 * PLANE  # there are two such planes
UNKNOWN = 0  # SentencePiece's id of unknown letters; here the row of items without a SID


class Subwords:
    """Cuts SIDs into subwords. model: the result of `fit_subwords`. codebook_sizes: the catalog's, L of them."""

    def __init__(self, model: bytes, codebook_sizes: tuple[int, ...]) -> None:
        import sentencepiece

        self._cut = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._sizes = codebook_sizes
        self.rows = int(self._cut.get_piece_size())
        self.fingerprint = hashlib.sha256(model).hexdigest()

    def rows_of(self, codes_NL: np.ndarray) -> np.ndarray:
        """int64 [N, P] in [1, rows): the subwords of every SID from left to right, then zeros.

        codes_NL: -1 in a whole row for an item without a SID, which gets zeros.
        """
        distinct_SL, sid_N = np.unique(codes_NL, axis=0, return_inverse=True)
        without = int(len(distinct_SL) > 0 and distinct_SL[0, 0] < 0)  # -1 sorts first
        subwords_S = [[]] * without + self._cut.encode(_words(distinct_SL[without:], self._sizes))
        rows_SP = np.zeros((len(subwords_S), max(map(len, subwords_S), default=0)), np.int64)
        for sid, subwords in enumerate(subwords_S):
            rows_SP[sid, : len(subwords)] = subwords
        return rows_SP[sid_N.reshape(-1)]


def fit_subwords(
    codes_NL: np.ndarray, impressions_N: np.ndarray, codebook_sizes: tuple[int, ...], vocabulary: int
) -> bytes:
    """A SentencePiece model of at most `vocabulary` subwords, UNKNOWN included; the same input gives the same model.

    Uses BPE, which merges the most frequent pair of neighbours first. SentencePiece's unigram model does not suit words
    as short as SIDs: it keeps whole SIDs, rare ones too, and drops single codes instead.

    codes_NL: -1 in a whole row for an item without a SID. impressions_N: the weight of each item.
    Every code that occurs is a subword, even if its items have no impressions, so that every SID can be cut.
    Raises ContractError for more codes than LETTERS, more than the vocabulary can hold, or no impressions.
    """
    if sum(codebook_sizes) > LETTERS:
        raise ContractError("model.item.tokens", f"at most {LETTERS} codes over all levels", sum(codebook_sizes))
    known_N = (codes_NL >= 0).all(axis=1)
    distinct_SL, sid_N = np.unique(codes_NL[known_N], axis=0, return_inverse=True)
    count_S = np.bincount(sid_N.reshape(-1), impressions_N[known_N], minlength=len(distinct_SL)).astype(np.int64)
    if not count_S.any():
        raise ContractError("model.item.tokens", "impressions of items with a SID in the train split", "none")
    words = _words(distinct_SL, codebook_sizes)
    letters = sorted(set("".join(words)))
    if len(letters) + 1 > vocabulary:
        expected = f"at least {len(letters) + 1}, a row for each code that occurs and one for none"
        raise ContractError("model.item.tokens.vocabulary", expected, vocabulary)
    shown = [(word, count) for word, count in zip(words, count_S.tolist(), strict=True) if count]
    alone = [(letter, 1) for letter in letters]  # SentencePiece maps letters that the corpus lacks to UNKNOWN
    return _train([*shown, *alone], vocabulary, len(codebook_sizes))


def _train(corpus: Sequence[tuple[str, int]], vocabulary: int, levels: int) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(f"{word}\t{count}" for word, count in corpus),
        input_format="tsv",
        model_writer=model,
        model_type="bpe",
        vocab_size=vocabulary,
        hard_vocab_limit=False,
        character_coverage=1.0,
        max_sentencepiece_length=levels,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_by_unicode_script=False,
        split_by_number=False,
        split_by_whitespace=False,
        unk_id=UNKNOWN,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _words(codes_SL: np.ndarray, codebook_sizes: tuple[int, ...]) -> list[str]:
    offset_L = np.concatenate([[0], np.cumsum(codebook_sizes)[:-1]])
    number_SL = codes_SL + offset_L
    letters_SL = 0xF0000 + number_SL + 2 * (number_SL >= PLANE)  # a plane's last two are not characters
    return ["".join(map(chr, row)) for row in letters_SL.tolist()]
