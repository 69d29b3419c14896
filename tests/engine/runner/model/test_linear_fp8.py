"""fp8 weights: what a model computes with them, which layers have them, and when they are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.config import EngineConfig
from engine.kernels.dispatch import attention_op
from engine.kernels.layout import StepLayout
from engine.runner.base import UnsupportedModel
from engine.runner.kv.memory import allocate_kv
from engine.runner.model import linear_fp8, loading
from engine.runner.model.attention import PackedStep
from engine.runner.model.decoder import is_llama_like
from engine.runner.model.linear_fp8 import Fp8Linear, check_fp8, fp8_linear, quantize_linears
from engine.runner.model.loading import load_model
from engine.weights_id import weights_id
from tests.engine.runner.driver import Driver, load_runner
from tests.factories_models import make_model

# The numbers of float8 e4m3 by the definition of its bits: 4 of exponent with bias 7, 3 of mantissa.
NUMBERS = sorted(
    math.ldexp(mantissa + (8 if exponent else 0), max(exponent, 1) - 7 - 3)
    for exponent in range(16)
    for mantissa in range(8)
    if (exponent, mantissa) != (15, 7)  # NaN
)


def stored(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rows as they are stored in fp8: the nearest numbers of the type, after the largest of a row was made 448."""
    scales = np.abs(rows).max(axis=1, keepdims=True) / 448.0
    numbers = np.array(NUMBERS)
    nearest = np.abs(np.abs(rows / scales)[..., None] - numbers).argmin(axis=-1)
    return np.asarray(np.sign(rows) * numbers[nearest] * scales)


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_product_is_that_of_the_nearest_numbers() -> None:
    assert len(NUMBERS) == 127 and NUMBERS[-1] == 448.0 and NUMBERS[1] == 2**-9
    layer = torch.nn.Linear(48, 32)
    x, exact = noise(0, 5, 48), layer.weight.detach().double().numpy()
    model = torch.nn.Sequential(layer)
    quantize_linears("a layer", model, torch.device("cpu"))
    assert isinstance(layer, Fp8Linear) and layer.weight.dtype is torch.float8_e4m3fn
    with torch.inference_mode():
        computed = layer(x[None])[0].numpy()
    expected = stored(x.double().numpy()) @ stored(exact).T + layer.bias.detach().numpy()
    np.testing.assert_allclose(computed, expected, rtol=1e-4, atol=1e-5)
    unquantized = x.double().numpy() @ exact.T + layer.bias.detach().numpy()
    # Both factors are rounded to 3 bits of mantissa, which costs each about 2.6%.
    error = np.linalg.norm(computed - unquantized) / np.linalg.norm(unquantized)
    assert 0.02 < error < 0.06


def test_no_tokens() -> None:
    weight, scales = noise(0, 32, 16).to(torch.float8_e4m3fn), torch.ones(32)
    assert fp8_linear(noise(1, 0, 16), weight, scales, None).shape == (0, 32)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "qwen2_moe"])
def test_the_engine_computes_a_quantized_model(family: str, tmp_path: Path) -> None:
    """Close to the model in bfloat16, and as transformers computes with the rounded weights."""
    path = make_model(family, tmp_path, seed=1, initializer_range=0.05)
    tokens = torch.arange(3, 27)
    logits = []
    for quantization in ("none", "fp8"):
        loaded = load_model(str(path), device="cpu", dtype="bfloat16", quantization=quantization)
        caches = allocate_kv(loaded.layers, len(tokens), loaded.dtype, loaded.device)
        slots = torch.arange(len(tokens))
        layout = StepLayout.build(slots[None].int(), slots, (0,), (0,), (len(tokens),))
        step = PackedStep(layout, caches, attention_op(loaded.device))
        logits.append(loaded.forward(tokens, slots, step, slots).float().clone())
    modules = dict(loaded.model.named_modules())
    kinds = {path.split(".")[-1]: type(module) for path, module in modules.items()}
    assert kinds["q_proj"] is kinds["o_proj"] is Fp8Linear
    assert kinds["lm_head"] is not Fp8Linear and kinds.get("shared_expert_gate") is not Fp8Linear
    exact, quantized = (each.log_softmax(-1) for each in logits)
    divergence = (exact.exp() * (exact - quantized)).sum(-1)
    assert 0 < float(divergence.mean()) < 0.02
    assert float((exact.argmax(-1) == quantized.argmax(-1)).float().mean()) > 0.7


def test_requests_are_served_and_known_by_the_quantization(tmp_path: Path) -> None:
    path = make_model("llama", tmp_path)
    runner = load_runner(path, device="cpu", num_kv_blocks=16, quantization="fp8")
    driver = Driver(runner)
    request = driver.add([5, 6, 7])
    driver.step([(request, 3)])
    driver.step([(request, 1)])
    assert len(request.output) == 2
    assert runner.info.quantization == "fp8"
    runner.close()
    ids = {
        weights_id(EngineConfig(str(path), "m", "unix:///x", quantization=quantization), "bfloat16")  # type: ignore[arg-type]
        for quantization in ("none", "fp8")
    }
    assert len(ids) == 2


def test_a_device_holds_one_matrix_in_16_bits_at_a_time(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_model("llama", tmp_path), dtype=torch.bfloat16)
    before = sum(parameter.nbytes for parameter in model.parameters())
    layers = [module for name, module in model.named_modules() if name.endswith("_proj")]
    quantize_linears("a model", model, torch.device("cpu"))
    kept = sum(parameter.nbytes for parameter in model.parameters())
    in_fp8 = sum(layer.weight.nbytes for layer in layers)
    assert kept + 2 * in_fp8 == before  # nothing is left in 16 bits
    assert all(layer.weight.element_size() == 1 for layer in layers)


def test_a_model_without_linear_layers_is_refused(tmp_path: Path) -> None:
    path = make_model("gpt2", tmp_path)  # its layers are transformers' Conv1D
    with pytest.raises(UnsupportedModel, match="no linear layers that --quantization fp8 can store"):
        load_model(str(path), device="cpu", quantization="fp8")


def test_a_model_with_few_such_weights_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_model(str(make_model("mixtral", tmp_path)), device="cpu", dtype="bfloat16", quantization="fp8")
    assert "experts of a mixture and embeddings keep their dtype" in caplog.text


@pytest.mark.parametrize("method", ["compressed-tensors", "fp8"])
def test_a_quantized_checkpoint_is_refused(method: str, tmp_path: Path) -> None:
    path = make_model("llama", tmp_path)
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match=f"is quantized already .{method}.*leave it out"):
        load_model(str(path), device="cpu", quantization="fp8")


@pytest.mark.parametrize(
    ("capability", "dtype", "message"),
    [
        ((8, 0), torch.bfloat16, "needs a GPU of compute capability 8.9 or higher .*An old GPU has 8.0"),
        ((9, 0), torch.float16, "computes in bfloat16 .* is float16: add --dtype bfloat16"),
        ((8, 9), torch.bfloat16, None),
    ],
)
def test_gpus_and_dtypes_that_cannot(
    capability: tuple[int, int], dtype: torch.dtype, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_fp8.torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(linear_fp8.torch.cuda, "get_device_name", lambda device: "An old GPU")
    config: Any = type("Config", (), {})()
    if message is None:
        check_fp8("m", config, torch.device("cuda"), dtype)
        return
    with pytest.raises(UnsupportedModel, match=message):
        check_fp8("m", config, torch.device("cuda"), dtype)


def test_several_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="--quantization fp8 cannot be combined with --tensor-parallel-size"):
        EngineConfig("m", "m", "unix:///x", quantization="fp8", tensor_parallel_size=2)


def test_the_gpu_decoder_computes_a_quantized_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check at load compares it with the quantized modules. Its kernels run in Triton's interpreter, also the
    products of few tokens, whose parts the next kernel adds up."""
    pytest.importorskip("triton")
    from engine.kernels.triton import linear
    from engine.runner.model.fused_gpu import GpuDecoder
    from engine.runner.model.linear_gpu import LinearWeights, TunedLinear

    scaled: list[bool] = []
    launched = linear.linear_few

    def noted(*arguments: Any) -> torch.Tensor:
        scaled.append(arguments[-1] is not None)
        return launched(*arguments)

    def tuned(layers: Any) -> TunedLinear:
        kinds.append(all(isinstance(layer, LinearWeights) and layer.scales is not None for layer in layers))
        return TunedLinear([linear.TILINGS[0]] * 2)

    kinds: list[bool] = []
    monkeypatch.setattr("engine.runner.model.linear_gpu.linear_few", noted)
    monkeypatch.setattr(loading, "can_fuse", is_llama_like)
    monkeypatch.setattr(loading, "fuse", lambda *arguments: GpuDecoder(*arguments, tune=tuned))
    path = make_model("qwen2", tmp_path, seed=1, initializer_range=0.1, num_hidden_layers=1)
    loaded = load_model(str(path), device="cpu", dtype="float32", quantization="fp8")
    assert isinstance(loaded.fused, GpuDecoder)
    assert kinds == [True] * 4 + [False]  # the output layer
    assert any(scaled)
