"""Gradient-trained tokenizers behind the contract of all: every kind fits, encodes, saves and loads; plug-in losses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from sidrec.config.learner_parts import (
    AlignmentController,
    BehaviorAlignment,
    Contrast,
    Diversity,
    HammingRepulsion,
    OverlapRepulsion,
    Router,
    SidLossConfig,
    Training,
)
from sidrec.config.learners import (
    AdaSidConfig,
    AdcSidConfig,
    AdcSidTraining,
    DasLiteConfig,
    GradientLearnerConfig,
    Learner,
    LetterConfig,
    MmRqVaeConfig,
    MultiVqConfig,
    QuaSidConfig,
    RqVaeConfig,
    TokenizerConfig,
)
from sidrec.errors import CollapseError
from sidrec.schema import ContractError
from sidrec.sid.learners import gradient
from sidrec.sid.learners.gradient import GradientTokenizer
from sidrec.sid.learners.registry import fit_tokenizer, load_tokenizer, save_tokenizer
from sidrec.sid.quality import code_quality, reconstruction_error
from sidrec.sid.tokenizer import Encoded, SideInformation
from tests.sid.item_files import clustered_vectors

TEXT, BEHAVIOR = clustered_vectors(200), clustered_vectors(200, 6, seed=1)
BEHAVIOR[:20] = 0
VECTORS = np.concatenate([TEXT, BEHAVIOR], axis=1)
PAIRS = np.random.default_rng(0).integers(0, 200, (150, 2))
SIDE = SideInformation((("text", 8), ("behavior", 6)), pairs_P2=PAIRS, behavior_NE=BEHAVIOR)
SHORT = Training(epochs=2, batch_size=64, least_utilisation=0)
ADC_SHORT = AdcSidTraining(epochs=2, batch_size=64, least_utilisation=0)
SMALL = {"codebook_size": 8, "width": 4, "training": SHORT}
SMALL_PRESET = {**SMALL, "training": {"epochs": 2, "batch_size": 64, "least_utilisation": 0}}
PLAIN = RqVaeConfig(hidden=(16,), **SMALL)  # type: ignore[arg-type]
LEARNERS: list[GradientLearnerConfig] = [
    PLAIN,
    replace(PLAIN, router=Router()),
    MultiVqConfig(hidden=(16,), **SMALL),  # type: ignore[arg-type]
    LetterConfig(hidden=(16,), losses=(Diversity(groups=2), *LetterConfig().losses[1:]), **SMALL),  # type: ignore[arg-type]
    DasLiteConfig(hidden=(16,), **SMALL),  # type: ignore[arg-type]
    QuaSidConfig(hidden=(16,), **SMALL),  # type: ignore[arg-type]
    AdaSidConfig(hidden=(16,), **SMALL),  # type: ignore[arg-type]
    MmRqVaeConfig(hidden=(16,), **SMALL),  # type: ignore[arg-type]
    AdcSidConfig(hidden=16, **SMALL | {"training": ADC_SHORT}),  # type: ignore[arg-type]
    *(
        TypeAdapter[Any](Learner).validate_python({"kind": kind, "preset": preset, "hidden": hidden, **SMALL_PRESET})
        for kind, preset, hidden in (
            ("adasid", "paper", [16]),
            ("mm_rqvae", "released", [16]),
            ("adc_sid", "paper", 16),
        )
    ),
]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient, "CHUNK", 64)


@pytest.mark.parametrize(
    "learner",
    LEARNERS,
    ids=lambda learner: f"{learner.kind}-{getattr(learner, 'preset', None)}" + "-router" * (learner.router is not None),
)
def test_every_learner_saves_and_loads_to_identical_codes(learner: GradientLearnerConfig, tmp_path: Path) -> None:
    config = TokenizerConfig(vectors=("text", "behavior"), normalize=False, learner=learner, seed=5)
    fitted = fit_tokenizer(VECTORS, config, SIDE)
    save_tokenizer(fitted, config, tmp_path / "tokenizer")
    loaded, loaded_config = load_tokenizer(tmp_path / "tokenizer")
    assert loaded_config == config
    ours, theirs = fitted.encode(VECTORS), loaded.encode(VECTORS)
    assert np.array_equal(ours.codes_NL, theirs.codes_NL)
    assert ours.codes_NL.dtype == np.int64
    assert ours.codes_NL.shape == (200, len(fitted.codebook_sizes))
    assert ours.codes_NL.max() < 8
    assert (ours.weights_NL is not None) == (learner.router is not None)
    if ours.weights_NL is not None and theirs.weights_NL is not None:
        assert np.array_equal(ours.weights_NL, theirs.weights_NL)
        assert ours.weights_NL.dtype == np.float32
        assert ours.weights_NL.min() >= 0
    assert (fitted.decode(ours.codes_NL) is None) == (learner.router is not None)
    decoded, again = fitted.decode(*ours), loaded.decode(*theirs)
    assert decoded is not None
    assert again is not None
    assert np.array_equal(decoded, again)
    assert decoded.shape == VECTORS.shape
    weights = None if ours.weights_NL is None else ours.weights_NL[70:71]
    alone = fitted.decode(ours.codes_NL[70:71], weights)  # of the second chunk
    assert alone is not None
    assert np.allclose(alone[0], decoded[70], atol=1e-5)


def test_fit_is_a_function_of_its_seed() -> None:
    first, again, other = (GradientTokenizer.fit(VECTORS, LEARNERS[6], seed, SIDE).arrays() for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not all(np.array_equal(first[name], other[name]) for name in first)


def test_fit_leaves_torch_s_generator_alone() -> None:
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    GradientTokenizer.fit(VECTORS, PLAIN, 0, SIDE)
    assert torch.equal(torch.rand(1), expected)


def test_a_memory_map_larger_than_what_is_held_gives_codes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidrec.sid.training.batches.MEMORY", 1000)
    monkeypatch.setattr("sidrec.sid.training.batches.WINDOW", 4000)
    np.save(tmp_path / "vectors.npy", VECTORS)
    tokenizer = GradientTokenizer.fit(np.load(tmp_path / "vectors.npy", mmap_mode="r"), LEARNERS[5], 0, SIDE)
    assert len(tokenizer.journal) == 2


@pytest.mark.parametrize("learner", [PLAIN, LEARNERS[1], LEARNERS[8]], ids=["rqvae", "router", "adc_sid"])
def test_codes_and_weights_of_a_row_depend_on_that_row_alone(learner: GradientLearnerConfig) -> None:
    """Wide enough that matrix products of other shapes would take other paths; whole, one by one, and shuffled."""
    text, behavior = clustered_vectors(150, 96), clustered_vectors(150, 32, seed=1)
    vectors = np.concatenate([text, behavior], axis=1)
    side = replace(SIDE, columns=(("text", 96), ("behavior", 32)), pairs_P2=None, behavior_NE=None)
    tokenizer = GradientTokenizer.fit(vectors, learner, 0, side)
    whole = tokenizer.encode(vectors)
    order = np.random.default_rng(0).permutation(150)
    shuffled = tokenizer.encode(vectors[order])
    single = [tokenizer.encode(row[None]) for row in vectors]
    assert np.array_equal(shuffled.codes_NL, whole.codes_NL[order])
    assert np.array_equal(np.concatenate([one.codes_NL for one in single]), whole.codes_NL)
    if whole.weights_NL is not None:
        assert shuffled.weights_NL is not None
        assert np.array_equal(shuffled.weights_NL, whole.weights_NL[order])
        assert np.array_equal(np.concatenate([one.weights_NL for one in single]), whole.weights_NL)


@pytest.mark.parametrize(
    "loss",
    [
        Contrast(),
        HammingRepulsion(),
        OverlapRepulsion(),
        Diversity(groups=2),
        BehaviorAlignment(controller=AlignmentController()),
    ],
    ids=lambda loss: loss.kind,
)
@pytest.mark.parametrize("learner", [PLAIN, LEARNERS[2], LEARNERS[7], LEARNERS[8]], ids=lambda learner: learner.kind)
def test_any_loss_plugs_into_any_learner(learner: GradientLearnerConfig, loss: SidLossConfig) -> None:
    config = replace(learner, further_losses=(loss,))
    tokenizer = GradientTokenizer.fit(VECTORS, config, 0, SIDE)
    assert all(np.isfinite(float(str(entry[loss.kind]))) for entry in tokenizer.journal)


def test_a_loss_given_twice_is_reported_twice() -> None:
    config = replace(PLAIN, further_losses=(Contrast(), Contrast(weight=0.5)))
    assert {"contrast", "contrast:2"} < set(GradientTokenizer.fit(VECTORS, config, 0, SIDE).journal[0])


def test_last_level_costs_choose_the_code_that_encoding_took() -> None:
    tokenizer = GradientTokenizer.fit(VECTORS, PLAIN, 0, SIDE)
    codes = tokenizer.encode(VECTORS).codes_NL
    costs = tokenizer.last_level_costs(VECTORS, codes)
    assert costs is not None
    assert costs.shape == (200, 8)
    assert np.array_equal(costs.argmin(axis=1), codes[:, -1])


@pytest.mark.parametrize(
    ("learner", "side", "sentence"),
    [
        (replace(PLAIN, codebook_size=201), SIDE, "expected at least 201 items for codebook_size 201, got 200 items"),
        (
            LEARNERS[5],
            replace(SIDE, pairs_P2=None),
            r"learner quasid, loss contrast: expected pairs of items \(`sidrec prep",
        ),
        (LEARNERS[5], replace(SIDE, pairs_P2=PAIRS + 100), r"item pairs: expected row numbers in \[0, 200\)"),
        (
            LEARNERS[3],
            replace(SIDE, behavior_NE=None),
            r"loss collaborative: expected behaviour vectors \(`sidrec prep behavior` makes them\), got none",
        ),
        (LEARNERS[4], replace(SIDE, behavior_NE=BEHAVIOR[:9]), r"vectors of shape \[200, width\], got \(9, 6\)"),
        (PLAIN, replace(SIDE, columns=(("text", 8),)), r"expected shape \[items, 8\].*got \(200, 14\)"),
        (
            replace(
                PLAIN,
                losses=tuple(
                    BehaviorAlignment(controller=AlignmentController(clip_quantile=quantile)) for quantile in (0, 0.1)
                ),
            ),
            SIDE,
            "one controller.clip_quantile for all losses",
        ),
    ],
)
def test_bad_input_is_one_message_before_any_training(
    learner: GradientLearnerConfig, side: SideInformation, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidrec.sid.learners.gradient.Trainer.run", lambda _: pytest.fail("it trained"))
    with pytest.raises(ContractError, match=sentence):
        GradientTokenizer.fit(VECTORS, learner, 0, side)


def test_width_must_fit_the_artifact() -> None:
    with pytest.raises(ContractError, match=r"expected shape \[items, 14\], as the tokenizer was fitted, got \(2, 3\)"):
        GradientTokenizer.fit(VECTORS, PLAIN, 0, SIDE).encode(np.zeros((2, 3), np.float32))


def test_a_collapsed_codebook_fails_the_fit() -> None:
    """Items that are all the same cannot use more than one code of eight."""
    same = np.ones((64, 4), np.float32)
    config = replace(PLAIN, training=replace(SHORT, least_utilisation=0.2))
    with pytest.raises(CollapseError, match=r"level 1: 12.5% of its codes are in use .* asks for 20.0%"):
        GradientTokenizer.fit(same, config, 0, SideInformation())


@pytest.mark.parametrize(("sampled_rows", "encoded"), [(slice(0), [16]), (slice(0, None, 4), [16, 64])])
def test_all_items_are_encoded_for_a_collapse_only_where_a_sample_uses_too_few_codes(
    sampled_rows: slice, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fourth item is looked at first. Where these are all the same, the others save the codebooks."""
    vectors, seen = clustered_vectors(64), []
    vectors[sampled_rows] = 1
    encode = GradientTokenizer.encode
    monkeypatch.setattr("sidrec.sid.learners.gradient.SAMPLE", 2)

    def counted(tokenizer: GradientTokenizer, rows: np.ndarray) -> Encoded:
        seen.append(len(rows))
        return encode(tokenizer, rows)

    monkeypatch.setattr(GradientTokenizer, "encode", counted)
    config = replace(PLAIN, training=replace(SHORT, least_utilisation=0.2))
    GradientTokenizer.fit(vectors, config, 0, SideInformation())
    assert seen == encoded


@pytest.mark.real_data
def test_rqvae_learns_real_items(real_data: Path) -> None:
    """Every code in use, and a quarter of the variance explained by 3 x 64 codes."""
    vectors = np.load(real_data / "amazon-beauty" / "minilm_l6_v2_title_brand_cat_f16.npy")[:3000].astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    config = RqVaeConfig(codebook_size=64, hidden=(128,), training=Training(epochs=20, batch_size=256))
    tokenizer = GradientTokenizer.fit(vectors, config, 0, SideInformation())
    codes = tokenizer.encode(vectors).codes_NL
    quality, error = code_quality(codes, tokenizer.codebook_sizes), reconstruction_error(vectors, codes, tokenizer)
    assert error is not None
    assert error.unexplained_variance < 0.75
    assert min(quality.utilisation) > 0.9
    assert quality.min_perplexity > 32
