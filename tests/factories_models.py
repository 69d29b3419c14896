"""Tiny models with random weights, and a tokenizer, saved as users have them: a directory with config and safetensors.

The weights are drawn from a wide distribution (`initializer_range` is far above that of a real model), so that the
logit of the likeliest token is clearly above the next. Greedy outputs are then the same whether a matrix product runs
over one sequence or over a packed batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCAB_SIZE = 320

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_WINDOW = {"sliding_window": 24}

# What each family needs besides. The names are transformers' model types.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": _WINDOW,
    "gemma": {"num_key_value_heads": 1, "head_dim": 32},
    "gemma2": {**_WINDOW, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 20.0},
    "gemma3_text": {**_WINDOW, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
    "phi": {"num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    "gpt2": {},
    "gpt_oss": {**_WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
}


def make_model(family: str, directory: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Saves a tiny model of `family` under `directory` and returns its path. `overrides` change its configuration."""
    settings = {**_COMMON, **FAMILIES[family], **overrides}
    if family == "gpt2":
        renamed = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
        renamed["max_position_embeddings"] = "n_positions"
        unknown = ("intermediate_size", "num_key_value_heads", "head_dim")
        settings = {renamed.get(key, key): value for key, value in settings.items() if key not in unknown}
    config = AutoConfig.for_model(family, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    path = directory / family
    model.save_pretrained(path)
    return path


def own_model(path: Path) -> Any:
    """The model as transformers computes it, in float32, with "eager" attention: by default transformers 5.17 gives
    Gemma 2 another one, which lacks its soft-cap."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def generated(model: Any, prompt: list[int], max_tokens: int) -> list[int]:
    """The greedy output of transformers itself for a prompt."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    return output[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


def make_tokenizer(directory: Path) -> Path:
    """Saves a byte-level tokenizer of `VOCAB_SIZE` tokens in a model's directory: ids 0 to 2 are special, 3 to 258 are
    the bytes, and the rest are pairs of letters."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[character] = len(vocabulary)
    letters = "etaoinshrdlu"
    pairs = [(a, b) for a in letters for b in letters][: VOCAB_SIZE - len(vocabulary)]
    for a, b in pairs:
        vocabulary[a + b] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.save_pretrained(directory)
    return directory
