"""SID-Coord over KeyedTensors, against its formulas row by row, and in a model of one's own."""

import inspect
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.modules.embedding_configs import DataType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

import sidrec.plug
from sidrec.config.item import SidCoordItem
from sidrec.config.item_parts import (
    BucketizedStats,
    CountedFusion,
    MatchStatsAlignment,
    NoAlignment,
    RawStatsAlignment,
    StatsGate,
    SumGate,
)
from sidrec.model.alignment import InterestAlignment
from sidrec.model.fusion_and_gate import CountedAttention, TargetAwareGate
from sidrec.plug import SidCoord, StatFeatures, dense_parameters, embedding_parameters
from tests.plug.hosts import DIM, ITEMS, KNOWN, batch, catalog, counts, tables

B = 12


def sid_coord(**options: object) -> SidCoord:
    torch.manual_seed(0)
    options = {"catalog": catalog(), "history": "history", "statistics": counts(), **options}
    return SidCoord(items=ITEMS, dim=DIM, **options)  # type: ignore[arg-type]


def unknown(item: int) -> bool:
    return not 1 <= item <= KNOWN


def gate_of(module: SidCoord) -> TargetAwareGate:
    gate = module.coordination.gate
    assert isinstance(gate, TargetAwareGate)
    return gate


def slow_sid(module: SidCoord, item: int) -> Tensor:
    """e_sid of one item: its granules' rows, found in the table by their order, weighted by the attention."""
    if unknown(item):
        return torch.zeros(DIM)
    codes = catalog().codes_NL
    granules = []
    for name, table in module.sid_tables.embedding_bags.items():
        levels = [int(digit) - 1 for digit in name[1:]]
        observed = sorted({tuple(row[levels]) for row in codes})
        granules.append(table.weight[1 + observed.index(tuple(codes[item - 1][levels]))])
    return module.coordination.semantic.fusion(torch.stack(granules).unsqueeze(0))[0]


def slow_target(module: SidCoord, hid_D: Tensor, item: int, history: Sequence[int]) -> tuple[Tensor, Tensor]:
    """e and the alignment features of one row."""
    sid_D = slow_sid(module, item)
    gate = gate_of(module).value(torch.tensor([[float(ITEMS - 1 - item)]]))[0]
    known = [] if unknown(item) else [other for other in history if not unknown(other)]
    alike = [functional.cosine_similarity(sid_D, slow_sid(module, other), dim=0) for other in known]
    similarity_1T = torch.stack(alike).unsqueeze(0) if alike else torch.zeros(1, 1)
    alignment = module.coordination.semantic.alignment
    assert isinstance(alignment, InterestAlignment)
    pooled = alignment.features(similarity_1T, torch.full((1, max(1, len(alike))), bool(alike)))
    aligned_A = torch.cat([pooled[0], torch.tensor([float(not alike)])])
    target_D = hid_D if unknown(item) else gate * hid_D + (1 - gate) * sid_D
    if module.coordination.project is not None:
        target_D = target_D + module.coordination.project.weight @ aligned_A
    return target_D, aligned_A


@pytest.mark.parametrize("alignment_key", [None, "alignment"])
def test_the_item_is_replaced_and_nothing_else(alignment_key: str | None) -> None:
    features, module = batch(B).sparse_features, sid_coord(alignment_key=alignment_key)
    if module.coordination.project is not None:
        nn.init.normal_(module.coordination.project.weight)
    embedded = tables()(features)
    found = module(embedded, features)
    assert found.keys() == [*embedded.keys(), *([alignment_key] if alignment_key else [])]
    for key in ("cat", "history"):
        assert torch.equal(found[key], embedded[key])
    history = [row.tolist() for row in features["history"].to_dense()]
    for row, item in enumerate(features["item_id"].values().tolist()):
        target_D, aligned_A = slow_target(module, embedded["item_id"][row], item, history[row])
        torch.testing.assert_close(found["item_id"][row], target_D)
        if alignment_key:
            torch.testing.assert_close(found[alignment_key][row], aligned_A)


def test_without_a_history_there_is_no_alignment() -> None:
    features, module = batch(B).sparse_features, sid_coord(history=None)
    embedded = tables()(features)
    found = module(embedded, features)
    for row, item in enumerate(features["item_id"].values().tolist()):
        gate = gate_of(module).value(torch.tensor([[float(ITEMS - 1 - item)]]))[0]
        target_D = gate * embedded["item_id"][row] + (1 - gate) * slow_sid(module, item)
        target_D = embedded["item_id"][row] if unknown(item) else target_D
        torch.testing.assert_close(found["item_id"][row], target_D)
    assert module.coordination.width == 0


def test_history_only_changes_what_the_alignment_sees() -> None:
    config = SidCoordItem(alignment=NoAlignment())
    features = batch(B).sparse_features
    embedded = tables()(features)
    with_history, without = (sid_coord(config=config, history=history) for history in ("history", None))
    without.load_state_dict(with_history.state_dict())
    torch.testing.assert_close(with_history(embedded, features)["item_id"], without(embedded, features)["item_id"])


def test_counts_in_the_batch_are_counts_per_item() -> None:
    features = batch(B, with_stats=True).sparse_features
    embedded = tables()(features)
    stats = features["exposures"].values().float().unsqueeze(1)
    for gate in (StatsGate(), StatsGate(stats=BucketizedStats())):
        names = StatFeatures(("exposures",), mean_S=(3.0,), std_S=(2.0,))
        module = sid_coord(statistics=names, config=SidCoordItem(gate=gate), history=None)
        sid_BD = torch.stack([slow_sid(module, item) for item in features["item_id"].values().tolist()])
        has_sid_B = torch.tensor([not unknown(item) for item in features["item_id"].values().tolist()])
        expected = module.coordination.gate(embedded["item_id"], sid_BD, stats, has_sid_B)
        torch.testing.assert_close(module(embedded, features)["item_id"], expected)
    standardized = gate_of(sid_coord(statistics=names)).statistics(torch.tensor([[0.0]]))
    assert standardized.item() == pytest.approx(-1.5)


def test_without_a_gate_no_statistics_are_needed() -> None:
    features, config = batch(B).sparse_features, SidCoordItem(gate=SumGate(), alignment=RawStatsAlignment())
    module = sid_coord(statistics=None, config=config)
    embedded = tables()(features)
    sid_BD = torch.stack([slow_sid(module, item) for item in features["item_id"].values().tolist()])
    torch.testing.assert_close(module(embedded, features)["item_id"], embedded["item_id"] + sid_BD)


def test_tables_have_the_type_and_the_names_asked_for() -> None:
    module = sid_coord(device=torch.device("meta"), data_type=DataType.FP16)
    configs = module.sid_tables.embedding_bag_configs()
    assert [config.name for config in configs] == ["s1", "s2", "s3", "s12", "s23"]
    assert {config.data_type for config in configs} == {DataType.FP16}
    assert {parameter.device.type for parameter in module.sid_tables.parameters()} == {"meta"}
    assert {parameter.device.type for parameter in module.coordination.parameters()} == {"cpu"}


class GatedRanker(nn.Module):
    """Somebody's own model, after PPNet (PEPNet, arXiv 2302.01115): priors gate each layer over all embeddings.

    It takes the alignment features as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tables = tables()
        self.sid_coord = sid_coord(alignment_key="alignment", item="item_id")
        width = 3 * DIM + self.sid_coord.alignment_dim
        self.hidden, self.gate, self.out = nn.Linear(width, 16), nn.Linear(width + DIM, 16), nn.Linear(16, 1)

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        embedded: KeyedTensor = self.sid_coord(self.tables(features), features)
        values = embedded.values()
        prior = torch.cat([values.detach(), embedded["item_id"]], dim=1)
        return self.out(torch.relu(self.hidden(values)) * 2 * torch.sigmoid(self.gate(prior))).squeeze(1)


def test_a_model_of_one_s_own_learns_in_all_its_parameters() -> None:
    torch.manual_seed(0)
    model, rows = GatedRanker(), batch(200)
    tables_of_all = list(embedding_parameters(model))
    assert len(tables_of_all) == 2 + 5
    dense = [parameter for _, parameter in dense_parameters(model)]
    assert len(tables_of_all) + len(dense) == len(list(model.parameters()))
    optimizers = [torch.optim.Adagrad(tables_of_all, lr=0.1), torch.optim.Adam(dense, lr=0.01)]
    losses = []
    for _ in range(30):
        loss = functional.binary_cross_entropy_with_logits(model(rows.sparse_features), rows.labels)
        model.zero_grad()
        loss.backward()
        still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert still == [], "parameters that the loss does not reach"
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def test_match_statistics_are_alignment_features_here_too() -> None:
    """Of item 5 and its history 5, 5, 6 and an item without a SID: all granules of 5 match twice of three."""
    config = SidCoordItem(granularities=("s1", "s23"), gate=SumGate(), alignment=MatchStatsAlignment())
    module = sid_coord(statistics=None, config=config, alignment_key="alignment")
    values, lengths = torch.tensor([1, 5, 5, 5, 6, KNOWN + 1]), torch.tensor([1, 1, 4])
    features = KeyedJaggedTensor(keys=["cat", "item_id", "history"], values=values, lengths=lengths)
    found = module(tables()(features), features)["alignment"][0]
    codes_NL = catalog().codes_NL
    same_s1 = float(codes_NL[4, 0] == codes_NL[5, 0])
    counts_of = torch.tensor([2 + same_s1, 2.0])
    torch.testing.assert_close(found, torch.cat([torch.log1p(counts_of), counts_of / 3, torch.zeros(1)]))
    assert tuple(codes_NL[4, 1:]) != tuple(codes_NL[5, 1:])


def test_a_fusion_counts_what_the_items_of_a_granule_were_shown() -> None:
    module = sid_coord(config=SidCoordItem(granularities=("s1", "s12"), fusion=CountedFusion()))
    fusion, codes_NL, shown_I = module.coordination.semantic.fusion, catalog().codes_NL, counts().counts_IS[:, 0]
    assert isinstance(fusion, CountedAttention)
    for name, levels in (("s1", 1), ("s12", 2)):
        observed = sorted({tuple(row[:levels]) for row in codes_NL.tolist()})
        expected = [0.0] * (1 + len(observed))
        for item, row in enumerate(codes_NL.tolist(), start=1):
            expected[1 + observed.index(tuple(row[:levels]))] += float(shown_I[item])
        assert fusion.get_buffer(f"impressions_{name}").flatten().tolist() == expected
    features = batch(B).sparse_features
    module(tables()(features), features).values().sum().backward()
    assert fusion.factor_G.grad is not None
    assert fusion.factor_G.grad.any()


def test_a_catalog_may_be_given_by_its_folder(tmp_path: Path) -> None:
    catalog().save(tmp_path / "catalog")
    for folder in (tmp_path / "catalog", str(tmp_path / "catalog")):
        assert sid_coord(catalog=folder).fingerprint == catalog().fingerprint


def test_a_warm_start_begins_at_the_hid() -> None:
    features, module = batch(B).sparse_features, sid_coord(warm_start=True)
    embedded = tables()(features)
    torch.testing.assert_close(module(embedded, features)["item_id"], embedded["item_id"])


@pytest.mark.parametrize("owner", [sidrec.plug, SidCoord], ids=["attach", "SidCoord"])
def test_the_example_in_the_documentation_runs(owner: object) -> None:
    """The indented block behind the first "::" of the docstring."""
    documentation = inspect.getdoc(owner)
    assert documentation is not None
    (block,) = re.findall(r"::\n\n((?:    .*\n|\n)+)", documentation)
    names: dict[str, object] = {}
    exec(textwrap.dedent(block), names)
    assert {"train_model", "logits"} & set(names)
