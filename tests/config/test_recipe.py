"""Recipes: what is refused, what flags change, and that a saved recipe reloads equal."""

from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from sidrec.config import ConfigError, Recipe, load, load_file, load_saved, save
from sidrec.config.item import SidCoordItem
from sidrec.config.section import unused_keys_below

RECIPES = sorted((Path(__file__).parents[2] / "launch" / "recipes").glob("*.yaml"))
SMALLEST = "name: a\ndata: {path: d, catalog: c}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(SMALLEST)
    return path


def _mistakes(path: Path, text: str) -> list[str]:
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_file(path)
    first, *mistakes = str(refused.value).splitlines()
    assert first == f"{path}: {len(mistakes)} mistake(s) in the recipe"
    return [mistake.strip() for mistake in mistakes]


def test_defaults_are_the_published_model(recipe: Path) -> None:
    loaded = load_file(recipe)
    item = loaded.model.item
    assert item.kind == "sid_coord"
    assert (item.fusion.kind, item.gate.kind, item.alignment.kind) == ("additive", "stats", "autodis")
    assert item.granularities == ("s1", "s2", "s3", "s12", "s23")
    assert loaded.run == Path("runs/a/seed0")


def test_sections_are_frozen(recipe: Path) -> None:
    with pytest.raises(FrozenInstanceError):
        load_file(recipe).seed = 1  # type: ignore[misc]


def test_all_unknown_keys_at_once(recipe: Path) -> None:
    assert _mistakes(recipe, "name: a\ndata: {path: d, catalog: c, btch_size: 3}\nmodle: {}\n") == [
        "data.btch_size: Unexpected keyword argument; expected one of path, catalog, train_on, label, batch_size, "
        "history_length, lanes, order, shuffle_rows, workers, bad_rows, cache_gb; did you mean batch_size?",
        "modle: Unexpected keyword argument; expected one of name, seed, data, tokenizer, model, start, optimizer, "
        "parallel, precision, train, checkpoint, evaluate; did you mean model?",
    ]


def test_missing_keys(recipe: Path) -> None:
    assert {line.split(":")[0] for line in _mistakes(recipe, "data: {path: d}\n")} == {"name", "data.catalog"}


def test_wrong_types_and_values(recipe: Path) -> None:
    broken = "name: a\nseed: 3.5\ndata: {path: d, catalog: c, batch_size: many}\ntrain: {epochs: 0}\n"
    assert _mistakes(recipe, broken) == [
        "seed: Input should be a valid integer, got a number with a fractional part, got 3.5",
        "data.batch_size: Input should be a valid integer, unable to parse string as an integer, got 'many'",
        "train.epochs: Input should be greater than 0, got 0",
    ]


def test_wrong_tag(recipe: Path) -> None:
    (mistake,) = _mistakes(recipe, SMALLEST + "model: {item: {kind: sidcoord}}\n")
    assert mistake.startswith("model.item: Input tag 'sidcoord'")
    assert "'hid', 'sid', 'hid_and_sid', 'sid_coord', 'gate_sid', 'content'" in mistake
    assert mistake.endswith("; did you mean sid_coord?")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            "model: {item: {kind: sid}, hid_init: 0.0}",
            "model.hid_init: expected none with item kind sid, which has no HIDs, got 0.0",
        ),
        (
            "model: {item: {kind: hid}, sid_init: 0.1}",
            "model.sid_init: expected none with item kind hid, which has no SIDs, got 0.1",
        ),
        (
            "model: {item: {kind: gate_sid}, history_pooling: {kind: target_attention}}",
            "model.history_pooling: expected none with item kind gate_sid, which has its own attention over histories, "
            "got target_attention",
        ),
        (
            "model: {item: {kind: sid}}\noptimizer: {hid: {kind: adagrad}}",
            "optimizer.hid: expected none with item kind sid, which has no HIDs, got adagrad",
        ),
        (
            "tokenizer: {vectors: [behavior, text], learner: {kind: adc_sid, content_gates: false}}",
            "tokenizer.learner.content_gates: expected none with content 1, where a column has a single expert, "
            "got false",
        ),
    ],
    ids=["hid_init", "sid_init", "history_pooling", "optimizer.hid", "content_gates"],
)
def test_a_key_that_would_do_nothing(sections: str, message: str, recipe: Path) -> None:
    assert _mistakes(recipe, f"{SMALLEST}{sections}\n") == [message]


LEARNER = "tokenizer: {vectors: [text, behavior], learner: "
IDLE = {
    "train: {skip_at_most: 3}": "train.skip_at_most: expected none with non_finite stop, got 3",
    "start: {optimizer: false}": "start.optimizer: expected none where there is no checkpoint, got false",
    "optimizer: {schedule: {final: 0.1}}": "optimizer.schedule.final: expected none with kind constant, got 0.1",
    "model: {item: {kind: sid_coord, history: []}, history_pooling: {kind: target_attention}}": (
        "model.history_pooling: expected none with item kind sid_coord, which has no histories to pool, "
        "got target_attention"
    ),
    "model: {item: {kind: sid, granularities: [s1], tokens: {kind: spm, vocabulary: 50}}}": (
        "model.item.granularities: expected none with tokens of kind spm, which replace them, got ('s1',)"
    ),
    "model: {item: {kind: sid, granularities: [s1], fusion: {kind: query}}}": (
        "model.item.fusion: expected none with one granularity, whose weight is always 1, got query"
    ),
    "tokenizer: {learner: {kind: rqvae, training: {revive_every: 0, revive_until: 0.5}}}": (
        "tokenizer.learner.training.revive_until: expected none with revive_every 0, got 0.5"
    ),
    "tokenizer: {learner: {kind: rqvae, training: {pairs: {draw: pairs}}}}": (
        "tokenizer.learner.training.pairs: expected none without a loss that needs pairs, such as contrast, "
        "got other values"
    ),
    LEARNER + "{kind: mm_rqvae, reconstruct: squared, align: contrast, mmd: one_kernel}}": (
        "tokenizer.learner.mmd: expected none where no loss is an MMD, got one_kernel"
    ),
    LEARNER + "{kind: mm_rqvae, sinkhorn_iterations: 9}}": (
        "tokenizer.learner.sinkhorn_iterations: expected none with sinkhorn 0, got 9"
    ),
    "tokenizer: {learner: {kind: rqvae, sinkhorn_iterations: 5}}": (
        "tokenizer.learner.sinkhorn_iterations: expected none with sinkhorn 0, got 5"
    ),
    "tokenizer: {learner: {kind: rqvae, router: {regularize: false, sparsity: 0.5}}}": (
        "tokenizer.learner.router.sparsity: expected none with regularize false, got 0.5"
    ),
    LEARNER + "{kind: adc_sid, align_weight: 0, temperature: 0.1}}": (
        "tokenizer.learner.temperature: expected none with align_weight 0, got 0.1"
    ),
    LEARNER + "{kind: adc_sid, align_weight: 0, controller: null}}": (
        "tokenizer.learner.controller: expected none with align_weight 0, got None"
    ),
    LEARNER + "{kind: mm_rqvae, align_weight: 0, align: contrast}}": (
        "tokenizer.learner.align: expected none with align_weight 0, got contrast"
    ),
    LEARNER
    + "{kind: mm_rqvae, temperature: 0.2}}": "tokenizer.learner.temperature: expected none with align mmd, got 0.2",
    "tokenizer: {learner: {kind: adasid, losses: [{kind: overlap_repulsion, relax: false, space: input}]}}": (
        "tokenizer.learner.losses.0.space: expected none with relax false, got input"
    ),
    "tokenizer: {learner: {kind: rqvae, further_losses: [{kind: diversity}, "
    "{kind: overlap_repulsion, load: none, load_max: 3}]}}": (
        "tokenizer.learner.further_losses.1.load_max: expected none with load none, got 3.0"
    ),
    "tokenizer: {learner: {kind: rqvae, further_losses: [{kind: hamming_repulsion, radius: 0, weight_part: 0.3}]}}": (
        "tokenizer.learner.further_losses.0.weight_part: expected none with radius 0, where no conflict is partial, "
        "got 0.3"
    ),
    "tokenizer: {learner: {kind: rqvae, further_losses: [{kind: hamming_repulsion, weight_part: 0, "
    "margin_part: 0.3}]}}": (
        "tokenizer.learner.further_losses.0.margin_part: expected none with weight_part 0, got 0.3"
    ),
}


@pytest.mark.parametrize("sections", IDLE)
def test_further_keys_that_would_do_nothing(sections: str, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """New recipes with them are refused; of a saved one they are ignored, after a warning."""
    text = f"{SMALLEST}{sections}\n"
    assert _mistakes(recipe, text) == [IDLE[sections]]
    found = load_saved(recipe, warn=True)
    key, expected = IDLE[sections].split(": ", 1)
    warning = f"sidrec: warning: {recipe}: {key} has no effect and is ignored: {expected}\n"
    assert capsys.readouterr().err == warning
    assert unused_keys_below(found) == {}


@pytest.mark.parametrize(
    "sections",
    [
        "train: {non_finite: skip, skip_at_most: 3}",
        "optimizer: {schedule: {kind: cosine, final: 0.1}}",
        "model: {item: {kind: sid, granularities: [s1], fusion: {kind: sum}}}",
        "model: {item: {kind: sid, granularities: [s1], fusion: {kind: concat_project}}}",
        "model: {item: {kind: hid_and_sid, granularities: [s1], tokens: {kind: spm, vocabulary: 50}, "
        "alignment: {kind: match_stats}}}",
        "model: {item: {kind: content}, history_pooling: {kind: target_attention}}",
        "tokenizer: {learner: {kind: rqvae, router: {regularize: false, hidden: 8}}}",
        LEARNER + "{kind: adc_sid, align_weight: 0, controller: {clip_quantile: 0.1}}}",
        LEARNER + "{kind: mm_rqvae, align: contrast, temperature: 0.2}}",
        LEARNER + "{kind: mm_rqvae, preset: released, sinkhorn_iterations: 9}}",
        "tokenizer: {learner: {kind: rqvae, further_losses: [{kind: contrast}], training: {pairs: {directed: true}}}}",
        "tokenizer: {learner: {kind: adasid, losses: [{kind: overlap_repulsion, relax: false, load: none}]}}",
    ],
)
def test_keys_that_act_are_kept(sections: str, recipe: Path) -> None:
    recipe.write_text(f"{SMALLEST}{sections}\n")
    found, saved = load_file(recipe), load_saved(recipe)
    assert unused_keys_below(found) == {}
    assert (found.tokenizer, found.train, found.optimizer) == (saved.tokenizer, saved.train, saved.optimizer)


def test_all_keys_that_would_do_nothing_at_once(recipe: Path) -> None:
    text = f"{SMALLEST}model: {{item: {{kind: sid}}, hid_init: 0.1}}\noptimizer: {{hid: {{kind: sgd}}}}\n"
    assert [line.partition(":")[0] for line in _mistakes(recipe, text)] == ["model.hid_init", "optimizer.hid"]


def test_a_run_that_exists_keeps_keys_that_do_nothing(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Releases up to 0.1.0 accepted such keys, also by flags: their recipes still resume."""
    runs = recipe.parent / "runs"
    recipe.write_text(f"{SMALLEST}model: {{item: {{kind: sid}}, hid_init: 0.1}}\ntrain: {{runs: {runs}}}\n")
    saved = runs / "a" / "seed3" / "config.yaml"
    saved.parent.mkdir(parents=True)
    saved.write_text(recipe.read_text() + "seed: 3\n")
    found = load([str(recipe), "--seed", "3"])
    assert found.model.hid_init is None
    key = "model.hid_init has no effect and is ignored: expected none with item kind sid, which has no HIDs, got 0.1"
    assert capsys.readouterr().err == f"sidrec: warning: {recipe} --seed 3: {key}\n"
    assert load_saved(saved) == found
    assert capsys.readouterr().err == ""
    load_saved(saved, warn=True)
    assert capsys.readouterr().err == f"sidrec: warning: {saved}: {key}\n"
    with pytest.raises(ConfigError, match=r"model\.hid_init: expected none"):
        load([str(recipe), "--seed", "4"])


def test_a_lane_of_one_row_has_no_negatives(recipe: Path) -> None:
    item = "model: {item: {kind: gate_sid, contrastive: {}}}\n"
    (mistake,) = _mistakes(recipe, "name: a\ndata: {path: d, catalog: c, batch_size: 8, lanes: 8}\n" + item)
    expected = "data.batch_size: expected at least 2 * data.lanes = 16 with a contrastive loss in model.item"
    assert mistake.startswith(expected)
    assert mistake.endswith(", got 8")
    recipe.write_text("name: a\ndata: {path: d, catalog: c, batch_size: 16, lanes: 8}\n" + item)
    assert load([str(recipe), "--seed", "1"]).model.item == load_file(recipe).model.item


def test_a_key_of_another_variant(recipe: Path) -> None:
    """The HID-only twin has no gate: a gate left in its recipe would silently do nothing."""
    (mistake,) = _mistakes(recipe, SMALLEST + "model: {item: {kind: hid, gate: {kind: stats}}}\n")
    assert mistake == (
        "model.item.hid.gate: Unexpected keyword argument; expected one of hid_index, hid_dropout, hid_dropout_history"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected a mapping of sections, got NoneType"),
        ("- a\n", "expected a mapping of sections, got list"),
        ("a: [\n", "expected valid YAML, got: "),
        ("name: a\nname: b\n", "the key name is there twice"),
        ("data:\n  path: d\n  path: e\n", "the key path is there twice"),
    ],
)
def test_what_is_no_recipe(text: str, expected: str, recipe: Path) -> None:
    recipe.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_file(recipe)
    assert str(refused.value).startswith(f"{recipe}: ")
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_merged_section_may_be_overridden(recipe: Path) -> None:
    gate = "{<<: {kind: stats, hidden: 8}, hidden: 9}"
    recipe.write_text(SMALLEST + f"model: {{item: {{kind: sid_coord, gate: {gate}}}}}\n")
    assert load_file(recipe).model.item.gate.hidden == 9  # type: ignore[union-attr]


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a readable recipe, got No such file or directory"):
        load_file(tmp_path / "absent.yaml")


@pytest.mark.parametrize("argv", [[], ["--seed", "3"]])
def test_the_recipe_comes_first(argv: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^sidrec train: expected a recipe file first, got (nothing|--seed)$"):
        load(argv, prog="sidrec train")


def test_flags_change_scalars_only_where_they_say(recipe: Path) -> None:
    recipe.write_text(SMALLEST + "model: {item: {kind: hid}}\noptimizer: {tables: {kind: sgd, lr: 0.2}}\n")
    changed = load([str(recipe), "--seed", "3", "--train.epochs", "2", "--parallel.sharding", "row_wise"])
    assert (changed.seed, changed.train.epochs, changed.parallel.sharding) == (3, 2, "row_wise")
    plain = load_file(recipe)
    assert (changed.model, changed.optimizer, changed.data) == (plain.model, plain.optimizer, plain.data)
    assert changed.optimizer.tables.lr == 0.2


def test_flags_are_checked_like_the_file(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.epochs: Input should be greater than 0, got 0"):
        load([str(recipe), "--train.epochs", "0"])


def test_an_unknown_flag_stops_and_suggests(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"got --train\.epoch 2; did you mean --train\.epochs\?"):
        load([str(recipe), "--train.epoch", "2"])


def test_help_needs_no_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load(["--help"], prog="sidrec train")
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: sidrec train RECIPE ")
    assert "--data.batch-size INT" in shown
    assert "Rows per step over all ranks together" in shown


INDEPENDENT = {
    "{learner: {kind: opq, levels: 4}}": ("s1", "s2", "s3", "s4"),
    "{learner: {kind: opq, levels: 32}}": tuple(f"s{level}" for level in range(1, 10)),
    "{learner: {kind: multi_vq}}": ("s1", "s2", "s3"),
    "{vectors: [text, behavior], learner: {kind: adc_sid}}": ("s1", "s2", "s3", "s4", "s5"),
    "{vectors: [text, visual, behavior], learner: {kind: adc_sid, shared: 2}}": tuple(f"s{n}" for n in range(1, 8)),
    "{vectors: [text, behavior], learner: {kind: mm_rqvae, levels: 4}}": ("s1", "s2", "s3", "s4"),
}
ORDERED = [
    "{learner: {kind: residual_kmeans}}",
    "{learner: {kind: rqvae, levels: 4}}",
    "{vectors: [text, behavior], learner: {kind: letter}}",
    "{learner: {kind: mm_rqvae, levels: 3}}",
    "{learner: {kind: random}}",
]
PUBLISHED = ("s1", "s2", "s3", "s12", "s23")


@pytest.mark.parametrize("tokenizer", [*INDEPENDENT, *ORDERED])
@pytest.mark.parametrize("kind", ["sid", "hid_and_sid", "sid_coord", "gate_sid"])
def test_independent_levels_are_features_of_their_own(tokenizer: str, kind: str, recipe: Path) -> None:
    text = f"{SMALLEST}tokenizer: {tokenizer}\nmodel: {{item: {{kind: {kind}}}}}\n"
    recipe.write_text(text)
    ordered = PUBLISHED[:3] if kind == "gate_sid" else PUBLISHED
    found = load_file(recipe)
    assert found.model.item.granularities == INDEPENDENT.get(tokenizer, ordered)  # type: ignore[union-attr]
    assert load([str(recipe)]) == load([str(recipe), "--seed", "0"]) == found
    recipe.write_text(text.replace(f"kind: {kind}}}}}\n", f"kind: {kind}, granularities: [s1, s12]}}}}\n"))
    assert load_file(recipe).model.item.granularities == ("s1", "s12")  # type: ignore[union-attr]


def test_features_of_levels_follow_flags_and_spare_other_items(recipe: Path) -> None:
    opq = f"{SMALLEST}tokenizer: {{learner: {{kind: opq, levels: 4}}}}\n"
    recipe.write_text(opq)
    fewer = load([str(recipe), "--tokenizer.learner.levels", "2"])
    assert fewer.model.item.granularities == ("s1", "s2")  # type: ignore[union-attr]
    own = load([str(recipe), "--model.item.granularities", "s1", "s12"])
    assert own.model.item.granularities == ("s1", "s12")  # type: ignore[union-attr]
    recipe.write_text(opq + "model: {item: {kind: sid, tokens: {kind: spm, vocabulary: 50}}}\n")
    assert load_file(recipe).model.item.granularities == PUBLISHED  # type: ignore[union-attr]
    recipe.write_text(opq + "model: {item: {kind: hid}}\n")
    assert load_file(recipe).model.item.sids is None


def test_a_run_that_exists_keeps_its_features(recipe: Path) -> None:
    """0.1.0 gave independent levels the features of ordered ones: such a run is resumed by its recipe as it is."""
    recipe.write_text(f"{SMALLEST}tokenizer: {{learner: {{kind: opq}}}}\ntrain: {{runs: {recipe.parent}/runs}}\n")
    new = load_file(recipe)
    assert len(new.model.item.granularities) == 6  # type: ignore[union-attr]
    old = new.run / "config.yaml"
    old.parent.mkdir(parents=True)
    save(replace(new, model=replace(new.model, item=SidCoordItem())), old)
    assert load_file(recipe) == load_saved(old)
    assert load([str(recipe), "--seed", "1"]).model.item == new.model.item


EVERYTHING = """
name: everything
seed: 7
data: {path: some/where, catalog: cat, batch_size: 64, bad_rows: quarantine}
tokenizer: {vectors: [text, visual], normalize: false, learner: {kind: random, levels: 2}}
model:
  item:
    kind: sid_coord
    granularities: [s1, s12]
    fusion: {kind: concat_mlp, hidden: 8}
    gate: {kind: stats, stats: {kind: bucketize, buckets: 5}, per_dimension: true}
    alignment: {kind: histogram, bins: 4}
  context: [user_id, cat_day]
  dense: [int_age]
  hid_init: 1e-3
  backbone: {kind: dlrm, over_layers: [32]}
optimizer:
  tables: {kind: rowwise_adagrad, eps: 1e-6}
  dense: {kind: adamw, weight_decay: 0.01}
  schedule: {kind: cosine, warmup_steps: 10}
"""


def test_saved_and_loaded_is_equal(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(EVERYTHING)
    first = load([str(recipe), "--train.runs", str(tmp_path / "runs")])
    save(first, tmp_path / "saved.yaml")
    second = load_file(tmp_path / "saved.yaml")
    assert second == first
    assert isinstance(second, Recipe)
    assert second.model.hid_init == 0.001
    assert second.model.item.gate.stats.buckets == 5  # type: ignore[union-attr]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes(path: Path, tmp_path: Path) -> None:
    recipe = load_file(path)
    save(recipe, tmp_path / "saved.yaml")
    assert load_file(tmp_path / "saved.yaml") == recipe
