"""A model directory without weights: a tiny byte-level tokenizer, a chat template and a config.

The simulated engine and the web process serve it like any other.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SENTENCES = (
    "The quick brown fox jumps over the lazy dog. Wir prüfen Umlaute: äöüß. 数据处理 🙂 👩‍👩‍👧",
    "system user assistant Summarise the document in one sentence: total 12.50 EUR, due on Monday.",
)
MAX_MODEL_LEN = 2048


def make_text_model(directory: Path, *, vocab_size: int = 400, max_model_len: int = MAX_MODEL_LEN) -> Path:
    """Writes the directory and returns it. Ids 0 to 2 are special; the simulated runner does not draw them."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    written = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "chat_template": CHAT_TEMPLATE,
        },
        "config.json": {
            "model_type": "llama",
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": max_model_len,
            "eos_token_id": 2,
        },
    }
    for name, content in written.items():
        (directory / name).write_text(json.dumps(content))
    return directory


def make_sentencepiece_model(directory: Path) -> Path:
    """Writes a directory with a tokenizer like that of Llama 2: words begin with a mark for the space, the decoder
    strips the first space, and unknown characters are byte tokens. Ids 0 to 2 are special."""
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for token in ("\u2581", *"abcdeh.", "\u2581a", "\u2581b", "he", "\u2581he"):
        vocabulary[token] = len(vocabulary)
    merges = [("\u2581", "a"), ("\u2581", "b"), ("h", "e"), ("\u2581", "he")]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": CHAT_TEMPLATE.replace("<|im_start|>", "<s>").replace("<|im_end|>", "</s>"),
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    model = {"model_type": "llama", "vocab_size": len(vocabulary), "max_position_embeddings": MAX_MODEL_LEN}
    (directory / "config.json").write_text(json.dumps(model))
    return directory
