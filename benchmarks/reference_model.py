"""The model "cpu-mini" of the serving benchmark: an 82M-parameter Llama with random weights that two cores can serve.

    python -m benchmarks.reference_model DIR [--vocab-size N]

Writes a complete model directory: config, bfloat16 safetensors, and a tokenizer with a chat template. The files are the
same on every machine, and nothing is downloaded. The model's answers are meaningless, but it costs as much as any model
of its size.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from benchmarks.serving.load import END_TEXT_ID, FIRST_TEXT_ID

SEED = 20
VOCAB_SIZE = END_TEXT_ID
HIDDEN = 768
LAYERS = 12
HEADS = 12
KV_HEADS = 4
INTERMEDIATE = 2048
MAX_POSITIONS = 2048
STD = 0.02
# With 0.02 for all weights, an answer repeats the last token of its prompt, because the layers add too little to the
# embedding. With these values, nearly every token of an answer differs from the one before.
QUERY_KEY_STD = 0.08
OUTPUT_STD = 0.1

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_MESSAGE = 2

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LETTERS = "etaoinshrdlcumwfgypbvkjxqz"  # most frequent first


def merges(vocab_size: int = VOCAB_SIZE) -> list[tuple[str, str]]:
    """Return the BPE merges: pairs of letters, pairs after a space, then groups of four until all ids are used.

    The merges are constructed, not trained, so that they do not depend on the version of a trainer.
    """
    pairs = [(a, b) for a in LETTERS for b in LETTERS]
    space = "\u0120"  # a space in byte-level BPE
    made = pairs + [(space, a + b) for a, b in pairs]
    room = vocab_size - FIRST_TEXT_ID - len(made)
    frequent = LETTERS[: math.ceil(room**0.25)]
    twos = [a + b for a in frequent for b in frequent]
    return made + [(a, b) for a in twos for b in twos][:room]


def write_tokenizer(directory: Path, vocab_size: int = VOCAB_SIZE) -> None:
    """Write tokenizer.json and its configuration.

    Ids 0 to 2 are special, 3 to 258 are the bytes, and the rest is ASCII text of two or more characters, which a server
    can stream immediately.
    """
    vocabulary = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    merged = merges(vocab_size)
    for piece in (*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merged)):
        vocabulary[piece] = len(vocabulary)
    if len(vocabulary) != vocab_size or vocabulary[merged[0][0] + merged[0][1]] != FIRST_TEXT_ID:
        raise ValueError(
            f"The vocabulary has {len(vocabulary)} ids, which does not match benchmarks/serving/load.py."
        )
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merged))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL_TOKENS[0],
            "eos_token": SPECIAL_TOKENS[END_OF_MESSAGE],
            "pad_token": SPECIAL_TOKENS[0],
            "model_max_length": MAX_POSITIONS,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def config(vocab_size: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HIDDEN // HEADS,
        "max_position_embeddings": MAX_POSITIONS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "initializer_range": STD,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": END_OF_MESSAGE,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    }


def weights(vocab_size: int) -> dict[str, torch.Tensor]:
    """Draw every tensor of the checkpoint, in this order, from one seed."""
    generator = torch.Generator().manual_seed(SEED)

    def drawn(rows: int, columns: int, std: float = STD) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) * std).to(torch.bfloat16)

    embeddings = drawn(vocab_size, HIDDEN)
    # Special tokens and single bytes score 0, so that another token is always more likely. An answer then never ends
    # early, and never contains half a character, which a server would hold back until it had the other half.
    embeddings[:FIRST_TEXT_ID] = 0
    tensors = {"model.embed_tokens.weight": embeddings}
    kv = HIDDEN * KV_HEADS // HEADS
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        tensors[f"{prefix}.self_attn.q_proj.weight"] = drawn(HIDDEN, HIDDEN, QUERY_KEY_STD)
        tensors[f"{prefix}.self_attn.k_proj.weight"] = drawn(kv, HIDDEN, QUERY_KEY_STD)
        tensors[f"{prefix}.self_attn.v_proj.weight"] = drawn(kv, HIDDEN)
        tensors[f"{prefix}.self_attn.o_proj.weight"] = drawn(HIDDEN, HIDDEN, OUTPUT_STD)
        tensors[f"{prefix}.mlp.gate_proj.weight"] = drawn(INTERMEDIATE, HIDDEN)
        tensors[f"{prefix}.mlp.up_proj.weight"] = drawn(INTERMEDIATE, HIDDEN)
        tensors[f"{prefix}.mlp.down_proj.weight"] = drawn(HIDDEN, INTERMEDIATE, OUTPUT_STD)
        tensors[f"{prefix}.input_layernorm.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
        tensors[f"{prefix}.post_attention_layernorm.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
    tensors["model.norm.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
    return tensors


def make_reference_model(directory: Path, vocab_size: int = VOCAB_SIZE) -> Path:
    """Write the model directory and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(weights(vocab_size), directory / "model.safetensors", metadata={"format": "pt"})
    _write_json(directory / "config.json", config(vocab_size))
    _write_json(
        directory / "generation_config.json",
        {"bos_token_id": 0, "eos_token_id": END_OF_MESSAGE, "pad_token_id": 0},
    )
    write_tokenizer(directory, vocab_size)
    return directory


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE, help="number of tokens (%(default)s)")
    options = parser.parse_args()
    print(make_reference_model(options.directory, options.vocab_size))


if __name__ == "__main__":
    main()
