"""Linear layers with weights packed for oneDNN compute the same as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.runner.model.linear_onednn import PackedLinear, can_pack, pack_linears, unpack_linears
from engine.runner.model.loading import load_model
from tests.factories_models import make_model

pytestmark = pytest.mark.skipif(
    not can_pack(torch.device("cpu"), torch.float32), reason="this torch has no oneDNN"
)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (1, 65, 24), (1, 0, 24)])
def test_packing_and_unpacking(shape: tuple[int, ...], bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40, bias=bias))
    weight = model[0].weight.detach().clone()
    x = torch.randn(*shape, generator=generator)
    with torch.inference_mode():
        expected = model(x)
        pack_linears(model)
        assert type(model[0]) is PackedLinear
        assert (model[0].weight.shape, model[0].weight.dtype) == (weight.shape, weight.dtype)
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
        unpack_linears(model)
        assert type(model[0]) is nn.Linear
        assert torch.equal(model[0].weight, weight)
        torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-7)


def test_a_loaded_model_is_packed_and_its_embedding_is_not(tmp_path: Path) -> None:
    path = make_model("gemma", tmp_path, tie_word_embeddings=True)
    model = load_model(str(path), device="cpu").model
    assert type(model.lm_head) is PackedLinear
    embedding = model.get_input_embeddings().weight
    assert embedding.layout is torch.strided
    assert torch.equal(model.lm_head.weight.to_dense(), embedding)


def test_a_model_that_reads_a_weight_itself_is_not_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.gemma.modeling_gemma import GemmaMLP

    def by_hand(self: Any, x: torch.Tensor) -> torch.Tensor:
        up = F.linear(x, self.up_proj.weight)
        return F.linear(self.act_fn(F.linear(x, self.gate_proj.weight)) * up, self.down_proj.weight)

    path = make_model("gemma", tmp_path)
    monkeypatch.setattr(GemmaMLP, "forward", by_hand)
    model = load_model(str(path), device="cpu").model
    assert type(model.lm_head) is nn.Linear
