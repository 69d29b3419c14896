"""The accuracy that a smaller KV cache costs: next-token predictions with K and V stored as bfloat16 and as float8.

    python -m benchmarks.kv_precision [--model bros_batch/demo/model] [--documents 40] [--out benchmarks/results]

Each of some documents that the demo model has never seen is computed as one chunk with float32 weights, and every
position's prediction is compared with that of a float32 cache. Attention is the reference, whose cache reads and writes
are those of the kernels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.fp8_weights import documents
from benchmarks.machine import write_result
from engine.kernels.layout import StepLayout
from engine.kernels.reference.attention import attention
from engine.runner.kv.memory import allocate_kv
from engine.runner.model.attention import IMPLEMENTATION, PackedStep, attention_step
from engine.runner.model.discovery import discover_layers

DTYPES = {"bfloat16": torch.bfloat16, "fp8_e4m3": torch.float8_e4m3fn}


def logits_of(model: torch.nn.Module, token_ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[T, V] float32 logits of the sequence [T], with K and V stored as `dtype`."""
    length = len(token_ids)
    caches = allocate_kv(discover_layers(model), length, dtype, torch.device("cpu"))
    slots = torch.arange(length)
    layout = StepLayout.build(slots.int()[None], slots, [0], [0], [length])
    with torch.inference_mode(), attention_step(PackedStep(layout, caches, attention)):
        output = model(input_ids=token_ids[None], position_ids=slots[None], use_cache=False)
    return output.logits[0].float()


def measure(model_path: str, num_documents: int) -> dict[str, dict[str, float]]:
    """For each dtype, how far its predictions are from those with a float32 cache."""
    model = AutoModelForCausalLM.from_pretrained(
        model_path, dtype=torch.float32, attn_implementation=IMPLEMENTATION
    ).eval()
    differing = dict.fromkeys(DTYPES, 0)
    divergence = dict.fromkeys(DTYPES, 0.0)
    worst = dict.fromkeys(DTYPES, 0.0)
    num_tokens = 0
    for token_ids, _ in documents(model_path, num_documents):
        exact = logits_of(model, token_ids, torch.float32).log_softmax(-1)
        num_tokens += len(token_ids)
        for name, dtype in DTYPES.items():
            other = logits_of(model, token_ids, dtype).log_softmax(-1)
            by_token = (exact.exp() * (exact - other)).sum(-1)
            differing[name] += int((exact.argmax(-1) != other.argmax(-1)).sum())
            divergence[name] += float(by_token.sum())
            worst[name] = max(worst[name], float(by_token.max()))
    return {
        name: {
            "tokens": num_tokens,
            "likeliest_token_differs": differing[name] / num_tokens,
            "mean_kl_divergence": divergence[name] / num_tokens,
            "largest_kl_divergence": worst[name],
        }
        for name in DTYPES
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="bros_batch/demo/model")
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    result = measure(arguments.model, arguments.documents)
    for name, figures in result.items():
        print(f"{name:10}", "  ".join(f"{key} {value:.3g}" for key, value in figures.items()))
    print(write_result(arguments.out, "kv_precision", result))


if __name__ == "__main__":
    main()
