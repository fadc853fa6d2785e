"""Every backbone: TorchRec's own to the last bit where TorchRec has it, PPNet against its formula.

Shapes: B rows, F embedding features, D width, X dense features.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.config.load import parse
from sidrec.config.model import (
    Backbone,
    DeepFmBackbone,
    DlrmBackbone,
    DlrmDcnBackbone,
    DlrmProjectionBackbone,
    PpnetBackbone,
)
from sidrec.errors import ConfigError
from sidrec.model.backbones import PPNet, build_backbone

B, D, X, ROWS = 6, 8, 5, 20
ITEM, CONTEXT = ("item", "history_hid"), ("user_id", "cat_a")
FEATURES = [*ITEM, *CONTEXT]
F = len(FEATURES)

TORCHREC: dict[str, tuple[Backbone, Callable[[EmbeddingBagCollection], nn.Module]]] = {
    "dlrm": (
        DlrmBackbone(dense_layers=(12,), over_layers=(16, 4)),
        lambda tables: DLRM(tables, X, [12, D], [16, 4, 1]),
    ),
    "dlrm_dcn": (
        DlrmDcnBackbone(dense_layers=(12,), over_layers=(16,), cross_layers=2, low_rank=3),
        lambda tables: DLRM_DCN(tables, X, [12, D], [16, 1], 2, 3),
    ),
    "dlrm_projection": (
        DlrmProjectionBackbone(dense_layers=(), over_layers=(16,), branch_layers=(7,), projections=(2, 3)),
        lambda tables: DLRM_Projection(tables, X, [D], [16, 1], [7, 2 * D], [7, 3 * D]),
    ),
    "deepfm": (DeepFmBackbone(dense_layer=12, deep_layer=9), lambda tables: SimpleDeepFMNN(X, tables, 12, 9)),
}


@pytest.mark.parametrize("kind", TORCHREC)
def test_torchrec_s_own_to_the_last_bit(kind: str) -> None:
    config, original_for = TORCHREC[kind]
    tables = [
        EmbeddingBagConfig(name=name, embedding_dim=D, num_embeddings=ROWS, feature_names=[name]) for name in FEATURES
    ]
    original = original_for(EmbeddingBagCollection(tables=tables))
    ours = build_backbone(config, ITEM, CONTEXT, D, X)
    weights = {name: value for name, value in original.state_dict().items() if not name.startswith("sparse_arch.")}
    assert ours.load_state_dict(weights).missing_keys == []
    ids = torch.randint(0, ROWS, (F * B,))
    sparse = KeyedJaggedTensor(keys=FEATURES, values=ids, lengths=torch.ones(F * B, dtype=torch.int32))
    dense_BX = torch.randn(B, X)
    looked_up = original.get_submodule("sparse_arch")(sparse)  # [B, F, D], or DeepFM's KeyedTensor
    embedded_BFD = looked_up if isinstance(looked_up, Tensor) else looked_up.values().view(B, F, D)
    logits_B1 = ours(dense_BX, embedded_BFD)
    expected_B1 = original(dense_BX, sparse)
    if kind == "deepfm":  # TorchRec's ends in a probability
        logits_B1 = torch.sigmoid(logits_B1)
    assert logits_B1.shape == (B, 1)
    assert torch.equal(logits_B1, expected_B1)


def ppnet(priors: tuple[str, ...]) -> PPNet:
    torch.manual_seed(0)
    model = build_backbone(PpnetBackbone(layers=(7, 3), gate_hidden=5, priors=priors), ITEM, CONTEXT, D, X)
    assert isinstance(model, PPNet)
    return model.double()


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    dense_BX = torch.randn(B, X, dtype=torch.double, generator=generator)
    return dense_BX, torch.randn(B, F, D, dtype=torch.double, generator=generator)


def naive_ppnet(model: PPNet, dense_BX: Tensor, embedded_BFD: Tensor, priors: list[int]) -> Tensor:
    """Row by row from the weights alone, the gate's inputs cut off from the features where they are not priors."""
    logits = []
    for dense_X, embedded_FD in zip(dense_BX, embedded_BFD, strict=True):
        h = torch.cat([dense_X, *embedded_FD])
        gate_inputs = torch.cat([h.detach(), *(embedded_FD[place] for place in priors)])
        for layer, gate in zip(model.layers, model.gates, strict=True):
            first_weight, first_bias, second_weight, second_bias = gate.parameters()
            hidden = (first_weight @ gate_inputs + first_bias).clamp_min(0)
            scale = 2 / (1 + torch.exp(-(second_weight @ hidden + second_bias)))
            weight, bias = layer.parameters()
            h = (weight @ h + bias).clamp_min(0) * scale
        logits.append(model.logit.weight @ h + model.logit.bias)
    return torch.stack(logits)


@pytest.mark.parametrize(("priors", "places"), [(("item", "user_id"), [0, 2]), (("cat_a",), [3])])
def test_ppnet_is_its_formula(priors: tuple[str, ...], places: list[int]) -> None:
    model = ppnet(priors)
    outcomes = []
    for forward in (model, partial(naive_ppnet, model, priors=places)):
        model.zero_grad()
        leaves = [tensor.requires_grad_() for tensor in inputs()]
        logits_B1 = forward(*leaves)
        (logits_B1 * torch.arange(B).unsqueeze(1)).sum().backward()
        gradients = [tensor.grad for tensor in (*leaves, *model.parameters())]
        assert all(gradient is not None and gradient.any() for gradient in gradients)
        outcomes.append((logits_B1.detach(), gradients))
    torch.testing.assert_close(outcomes[0], outcomes[1])


def test_ppnet_s_gates_teach_the_priors_alone() -> None:
    model = ppnet(("item", "user_id"))
    # With zero weights, h_1 does not depend on the features: their gradient comes through the gates alone.
    for layer in model.layers:
        nn.init.zeros_(layer.get_parameter("weight"))
        nn.init.ones_(layer.get_parameter("bias"))
    dense_BX, embedded_BFD = (tensor.requires_grad_() for tensor in inputs())
    model(dense_BX, embedded_BFD).sum().backward()
    assert dense_BX.grad is not None
    assert embedded_BFD.grad is not None
    assert not dense_BX.grad.any()
    assert [bool(embedded_BFD.grad[:, place].any()) for place in range(F)] == [True, False, True, False]


def test_closed_and_open_gates() -> None:
    model = ppnet(("item",))
    for gate, bias in zip(model.gates, (-50.0, 50.0), strict=True):
        nn.init.zeros_(gate.get_parameter("layers.2.weight"))
        nn.init.constant_(gate.get_parameter("layers.2.bias"), bias)
    # the first layer is multiplied by 0, the second, of which its bias is left, by 2
    expected = model.logit.weight @ (2 * model.get_parameter("layers.1.bias").clamp_min(0)) + model.logit.bias
    torch.testing.assert_close(model(*inputs()), expected.expand(B, 1))


def test_the_item_as_a_prior_is_all_of_the_target() -> None:
    model = build_backbone(PpnetBackbone(), ("item", "item_sid", "history_hid"), CONTEXT, D, X)
    assert isinstance(model, PPNet)
    assert model.priors == [0, 1, 3]


MISTAKES = {
    "a prior that is no feature": (
        {"context": ["cat_a"], "backbone": {"kind": "ppnet"}},
        "expected backbone.priors among item, cat_a, got 'user_id'",
    ),
    "no over layers": ({"backbone": {"kind": "dlrm_dcn", "over_layers": []}}, "over_layers"),
    "no activation unit": ({"history_pooling": {"kind": "target_attention", "hidden": []}}, "hidden"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name: str) -> None:
    model, sentence = MISTAKES[name]
    with pytest.raises(ConfigError) as caught:
        parse({"name": "x", "data": {"path": "x", "catalog": "x"}, "model": model}, "recipe.yaml")
    assert sentence in str(caught.value)
