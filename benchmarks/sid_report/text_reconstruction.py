"""How much of the text vectors codes keep: through the learner's own decoder, and through one that all learners get.

Shapes: N items, V vector width, T width of the text column, which comes first, L levels, C codes of all levels.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from sidrec.sid.tokenizer import Encoded, Tokenizer

RIDGE = 1e-3  # items worth of pull to the mean; the indicators of a level sum to one, so several answers fit alike


@dataclass(frozen=True)
class TextReconstruction:
    """squared_error: mean over items of the squared L2 error, summed over dimensions. Text vectors are unit vectors.

    unexplained_variance: that, divided by the mean squared L2 distance from the mean text vector.
    """

    squared_error: float
    unexplained_variance: float


def own_decoder(tokenizer: Tokenizer, text_NT: np.ndarray, encoded: Encoded) -> TextReconstruction | None:
    """The text part of what codes, with their token weights, stand for; None where they do not stand for vectors."""
    decoded_NV = tokenizer.decode(encoded.codes_NL, encoded.weights_NL)
    return None if decoded_NV is None else _error(text_NT, decoded_NV[:, : text_NT.shape[1]])


def additive_decoder(text_NT: np.ndarray, codes_NL: np.ndarray, codebook_sizes: tuple[int, ...]) -> TextReconstruction:
    """The same of the best sum of one vector per code: least squares on these very items.

    So it can be had of any codes, also random ones, whose value says how much the C free vectors explain by chance.
    """
    items, levels = codes_NL.shape
    first_L = np.cumsum([0, *codebook_sizes[:-1]])
    columns = (codes_NL + first_L).ravel()
    taken_NC = csr_array(
        (np.ones(columns.size), columns, np.arange(0, columns.size + 1, levels)), shape=(items, sum(codebook_sizes))
    )
    mean_T = text_NT.mean(axis=0, dtype=np.float64)
    normal_CC = (taken_NC.T @ taken_NC).toarray() + RIDGE * np.eye(sum(codebook_sizes))
    vectors_CT = np.linalg.solve(normal_CC, taken_NC.T @ (text_NT - mean_T))
    return _error(text_NT, taken_NC @ vectors_CT + mean_T)


def _error(text_NT: np.ndarray, decoded_NT: np.ndarray) -> TextReconstruction:
    squared = float(np.square(text_NT - decoded_NT).sum(dtype=np.float64))
    variance = float(np.square(text_NT - text_NT.mean(axis=0, dtype=np.float64)).sum(dtype=np.float64))
    return TextReconstruction(squared / len(text_NT), squared / variance)
