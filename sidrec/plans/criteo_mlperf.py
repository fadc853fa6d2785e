"""Sizes of MLPerf Training's recommendation benchmark, DLRM-DCNv2 on Criteo 1TB with synthetic multi-hot ids.

As the reference's commands give them (github.com/facebookresearch/dlrm and mlcommons/training, torchrec_dlrm:
--num_embeddings_per_feature, --multi_hot_sizes, --embedding_dim), with the reference's global batch. How popular ids
are is not part of it: a tables file's default is taken.
"""

CRITEO_MLPERF = "criteo-mlperf"
"""What stands in the place of a file to plan for and to measure these tables."""

ROWS = (
    *(40_000_000, 39_060, 17_295, 7_424, 20_265, 3, 7_122, 1_543, 63, 40_000_000, 3_067_956, 405_282, 10),
    *(2_209, 11_938, 155, 4, 976, 14, 40_000_000, 40_000_000, 40_000_000, 590_152, 12_973, 108, 36),
)
IDS_PER_BAG = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)
WIDTH = 128
ROWS_PER_STEP = 65_536
