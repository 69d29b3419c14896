"""Models with well-known shapes and random weights, which are drawn on the device without a checkpoint."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from benchmarks.gpu.scale import Scale
from engine.config import EngineConfig
from engine.runner import loading
from engine.runner.torch_runner import TorchRunner

_LLAMA_3 = {
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}


def _llama_3_rope(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


# Model type and shape, as published with the weights of the models.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-8b": (  # Llama 3.1 8B: the shape of Llama 3 8B, with positions for long contexts
        "llama",
        _LLAMA_3
        | {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": False,
            "rope_parameters": _llama_3_rope(8.0),
        },
    ),
    "qwen3-4b": (
        "qwen3",
        {
            "vocab_size": 151936,
            "max_position_embeddings": 40960,
            "rms_norm_eps": 1e-6,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    "llama-1b": (  # Llama 3.2 1B
        "llama",
        _LLAMA_3
        | {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "tie_word_embeddings": True,
            "rope_parameters": _llama_3_rope(32.0),
        },
    ),
}


@dataclass(frozen=True, slots=True)
class Model:
    """A model configuration, stored in `directory` for the engine, and the costs that follow from its size."""

    name: str
    config: PretrainedConfig
    directory: Path

    @property
    def layer_params(self) -> int:
        """Number of weights in the matrices of all layers, which multiply every token."""
        c = self.config
        attention = (2 * c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
        return int(c.num_hidden_layers * c.hidden_size * (attention + 3 * c.intermediate_size))

    @property
    def head_params(self) -> int:
        """Number of weights in the output matrix, which multiplies only tokens whose logits are needed."""
        return int(self.config.hidden_size * self.config.vocab_size)

    @property
    def kv_elements(self) -> int:
        """Number of K and V elements per token, over all layers."""
        c = self.config
        return int(2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim)

    def step_bytes(
        self, layer_itemsize: int, itemsize: int, kv_itemsize: int, num_rows: int, context: int
    ) -> float:
        """Return the bytes that a step of single-token rows must read: all weights once, and the context of each row.

        The output matrix has elements of `itemsize` bytes, whatever those of the layers have. Writes are negligible.
        """
        weights = layer_itemsize * self.layer_params + itemsize * self.head_params
        return weights + kv_itemsize * num_rows * context * self.kv_elements

    def layer_flops(self, num_tokens: int) -> float:
        """Return the operations of the layers' products: two per weight and token."""
        return 2.0 * num_tokens * self.layer_params

    def prefill_flops(self, num_tokens: int) -> float:
        """Return the operations that a prompt from position 0 needs beside those of the layers' products.

        These are two operations per weight of the output matrix, for one token, and in attention two products of
        head_dim numbers for each pair of a token and an earlier one.
        """
        c = self.config
        pairs = num_tokens * (num_tokens + 1) / 2
        attention = 4 * c.num_hidden_layers * c.num_attention_heads * c.head_dim * pairs
        return float(2 * self.head_params + attention)


def make_model(name: str, directory: Path, scale: Scale) -> Model:
    """Create a model and save its configuration under `directory`."""
    kind, values = SHAPES[name]
    values = values | scale.shape
    # With this standard deviation, the output of a matrix product is slightly larger than its input, as in trained
    # models: the softmax sees neither equal scores only nor a single dominant one.
    values["initializer_range"] = 1.25 * values["hidden_size"] ** -0.5
    if "vocab_size" in scale.shape:
        values |= {"bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(kind, **values)
    path = directory / name
    config.save_pretrained(path)
    return Model(name, config, path)


def dtype_for(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def load_runner(model: Model, device: torch.device, scale: Scale, **settings: Any) -> TorchRunner:
    """Load the engine's runner like `bros-batch engine`. `settings` are fields of its configuration."""
    dtype = dtype_for(device)
    config = EngineConfig(
        model=str(model.directory),
        served_model_name=model.name,
        listen="unix:///unused",
        load_format="dummy",
        device=device.type,  # type: ignore[arg-type]
        dtype=str(dtype).removeprefix("torch."),  # type: ignore[arg-type]
        max_model_len=scale.max_model_len,
        max_num_seqs=scale.max_num_seqs,
        max_num_batched_tokens=scale.max_num_batched_tokens,
        num_kv_blocks=scale.num_kv_blocks,
        num_host_slots=scale.num_host_slots,
        **settings,
    )
    runner = loading.load_runner(config)
    if device.type == "cuda":
        _check_form(runner, wants_graphs=not config.enforce_eager)
    return runner


def _check_form(runner: TorchRunner, *, wants_graphs: bool) -> None:
    """Raise an error if the runner is not what would be served: measuring a fallback would waste the time of a GPU."""
    missing = None
    if not runner.is_fused:
        missing = "fused kernels"
    elif wants_graphs and not runner.graph_shapes:
        missing = "CUDA graphs"
    if missing:
        runner.close()
        raise RuntimeError(f"the model runs without {missing}; the warning above says why")


@contextmanager
def running(model: Model, device: torch.device, scale: Scale, **settings: Any) -> Iterator[TorchRunner]:
    """Load a runner for the duration of the block, and free its memory afterwards."""
    runner = load_runner(model, device, scale, **settings)
    try:
        yield runner
    finally:
        runner.close()
        del runner
        free_memory()


def free_memory() -> None:
    """Return unreferenced memory to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
