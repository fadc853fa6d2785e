"""The speed comparison compares the same work: same codes, codebooks as good, steps that learn."""

import numpy as np
import pytest
import torch

from benchmarks.sid_speed import clustered_vectors, faiss_encode, faiss_fit, step_models, summary, training
from sidrec.config.learners import ResidualKMeansConfig
from sidrec.sid.learners.kmeans import ResidualKMeans
from sidrec.sid.tokenizer import SideInformation


def test_ratio_is_of_the_same_round() -> None:
    seconds = {"sidrec": [1.0, 2.0, 6.0], "other": [2.0, 2.0, 3.0]}
    found = summary(seconds, units=10)
    assert found["other"] == {"cpu_ms": [200, 200, 300], "ratio_of_sidrec": [1, 0.5, 2]}, "median, least, most"
    assert found["sidrec"]["ratio_of_sidrec"] == [1, 1, 1]


def test_faiss_by_hand_finds_codebooks_as_good_and_the_same_codes() -> None:
    vectors = clustered_vectors(2000, 16)
    config = ResidualKMeansConfig(codebook_size=16, iterations=5)
    ours = ResidualKMeans.fit(vectors, config, 0, SideInformation())
    by_hand = faiss_fit(vectors, config)
    theirs = ResidualKMeans(np.stack(by_hand), beam=1)
    codes = faiss_encode(vectors, by_hand)
    assert (theirs.encode(vectors).codes_NL == codes).mean() > 0.999
    errors = [
        np.square(vectors - tokenizer.decode(tokenizer.encode(vectors).codes_NL)).sum() for tokenizer in (ours, theirs)
    ]
    assert errors[0] == pytest.approx(errors[1], rel=0.05)


@pytest.mark.parametrize("name", ["sidrec", "ResidualVQ, by gradients", "ResidualVQ, by moving averages"])
def test_every_contender_learns_network_and_codewords(name: str) -> None:
    model = step_models()[name]
    batch = torch.from_numpy(clustered_vectors(256, 384))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        loss = float(model.eval()(batch))
    model.train()
    training(model, (batch,) * 5)()
    with torch.no_grad():
        assert float(model.eval()(batch)) < loss
    moved = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert any("codebook" in key for key in moved)
    assert any("encoder" in key for key in moved)
    assert any("decoder" in key for key in moved)
