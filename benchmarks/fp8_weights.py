"""The accuracy that fp8 weights cost: next-token predictions with `--quantization fp8`, and with fewer layers in fp8.

    python -m benchmarks.fp8_weights [--model bros_batch/demo/model] [--documents 40] [--out benchmarks/results]

The demo model reads documents that it has never seen, each with its true answer. Every position's prediction is
compared with that of float32, and the predictions of the answer with the truth. Models with random weights of several
architectures read random tokens. bfloat16, which is what fp8 replaces, is measured the same way. fp8 is emulated: the
products have the numbers that a GPU multiplies.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks.machine import write_result
from bros_batch.demo.documents import HELD_OUT_SEED, generate_documents
from bros_batch.demo.prompts import EXTRACTION_PROMPT
from engine.runner.model.linear_fp8 import quantize_linears

FAMILIES = ("llama", "qwen3", "gemma2", "mistral", "qwen2_moe")
SHAPE = {
    "vocab_size": 2048, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 512,
    "moe_intermediate_size": 256, "shared_expert_intermediate_size": 256, "num_experts": 8, "num_experts_per_tok": 2,
    "initializer_range": 1.25 * 512**-0.5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip

Keep = Callable[
    [str, int], bool
]  # whether the layer of this path keeps its dtype, in a model of so many blocks


def nothing(path: str, num_blocks: int) -> bool:
    return False


def first_and_last_block(path: str, num_blocks: int) -> bool:
    return any(part in ("0", str(num_blocks - 1)) for part in path.split(".")[:3])


def down_projections(path: str, num_blocks: int) -> bool:
    return path.endswith("down_proj")


VARIANTS: dict[str, Keep] = {
    "fp8": nothing,
    "fp8, but the first and last block": first_and_last_block,
    "fp8, but down projections": down_projections,
}


def quantized(model: Any, keep: Keep) -> Any:
    """A copy of the model in fp8, with the layers that `keep` names as they were."""
    num_blocks = model.config.num_hidden_layers
    copied = copy.deepcopy(model)
    quantize_linears("the model", copied, torch.device("cpu"))
    for path, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and keep(path, num_blocks):
            copied.set_submodule(path, copy.deepcopy(module))
    return copied


def forms_of(model: Any) -> dict[str, Any]:
    """The model in every form that is compared with it. fp8 computes in bfloat16 between products, as on a GPU."""
    half = copy.deepcopy(model).bfloat16()
    return {"bfloat16": half} | {name: quantized(half, keep) for name, keep in VARIANTS.items()}


def compare(model: Any, inputs: Iterable[tuple[torch.Tensor, int]]) -> dict[str, dict[str, float]]:
    """For each form, how far its predictions are from float32. Inputs are tokens [T] and where the answer begins."""
    inputs = list(inputs)
    result: dict[str, dict[str, float]] = {}
    exact = [_log_probabilities(model, tokens) for tokens, _ in inputs]
    for name, form in {"float32": model, **forms_of(model)}.items():
        differing = divergence = correct = num_answer = num_tokens = 0.0
        for (tokens, start), expected in zip(inputs, exact, strict=True):
            other = _log_probabilities(form, tokens)
            differing += float((expected.argmax(-1) != other.argmax(-1)).sum())
            divergence += float((expected.exp() * (expected - other)).sum())
            correct += float((other[start - 1 : -1].argmax(-1) == tokens[start:]).sum())
            num_answer += len(tokens) - start
            num_tokens += len(tokens)
        result[name] = {
            "tokens": num_tokens,
            "likeliest_token_differs": differing / num_tokens,
            "mean_kl_divergence": divergence / num_tokens,
        }
        if num_answer:
            result[name]["answer_tokens_correct"] = correct / num_answer
    return result


def _log_probabilities(model: Any, tokens: torch.Tensor) -> torch.Tensor:  # [T, V] float32
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=tokens[None], use_cache=False).logits[0]
    return logits.float().log_softmax(-1)


def documents(model_path: str, count: int) -> Iterable[tuple[torch.Tensor, int]]:
    """Prompts with their true answers as tokens, and where the answers begin."""
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    for document in generate_documents(count, HELD_OUT_SEED):
        asked = [{"role": "user", "content": EXTRACTION_PROMPT.format(text=document.text)}]
        answered = [*asked, {"role": "assistant", "content": json.dumps(document.truth)}]
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        text = tokenizer.apply_chat_template(answered, tokenize=False)
        tokens = tokenizer.encode(text, add_special_tokens=False)
        yield torch.tensor(tokens), len(tokenizer.encode(prompt, add_special_tokens=False))


def random_model(family: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SHAPE)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="bros_batch/demo/model")
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    result = {arguments.model: compare(model, documents(arguments.model, arguments.documents))}
    for family in FAMILIES:
        model = random_model(family)
        tokens = torch.randint(3, 2048, (256,), generator=torch.Generator().manual_seed(1))
        result[f"{family}, random weights"] = compare(model, [(tokens, len(tokens))])
    print("| model | weights | mean KL divergence | likeliest token differs | answer tokens correct |")
    print("| --- | --- | --: | --: | --: |")
    for title, forms in result.items():
        for name, figures in forms.items():
            correct = figures.get("answer_tokens_correct")
            print(
                f"| {title} | {name} | {figures['mean_kl_divergence']:.2g} "
                f"| {figures['likeliest_token_differs']:.2%} | {'' if correct is None else f'{correct:.2%}'} |"
            )
    print(write_result(arguments.out, "fp8_weights", result))


if __name__ == "__main__":
    main()
