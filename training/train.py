"""Train the demo model from scratch on generated documents: `python -m training.train --out DIR`.

Two CPU cores and about 50 minutes are enough. The learning rate follows the wall clock, so `--minutes` sets the whole
schedule. Every `--save-minutes`, the training state is saved to DIR/training.pt (for `--resume`). If the held-out
accuracy is the best so far, the model is saved to DIR, ready for `AutoModelForCausalLM` and `AutoTokenizer`.

`--init DIR` starts from a saved model and its tokenizer instead, for example to teach it more kinds of questions. Use
lower learning rates then, such as `--matrix-rate 0.004 --embedding-rate 8e-4`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from bros_batch.demo import prompts
from bros_batch.demo.documents import HELD_OUT_SEED, generate_documents
from training.batches import Batch, BatchStream
from training.conversations import EARLY_PROMPT_WEIGHT
from training.copying import build_in_copying
from training.exact import exact_shares
from training.held_out import Case, cases, user
from training.muon import Muon
from training.tokenizer import train_tokenizer

TOKENIZER_SEED = 999_999_999  # training seeds are below 900 million, held-out seeds from 1000 million on
WATCH_SEED = HELD_OUT_SEED  # for the accuracy during training; evaluate.py uses other held-out seeds
WATCH_DOCUMENTS = 192
EARLY_SHARE = 0.06  # share of the time in the early phase, which has many copy exercises
# (share of copy exercises, loss weight of prompt tokens)
EARLY_MIX = (0.4, EARLY_PROMPT_WEIGHT)
LATER_MIX = (0.15, 0.0)
FURTHER_MIX = (0.05, 0.0)  # for a model that can copy
WARM_UP = 0.01  # share of the time in which the learning rate rises
COOL_DOWN = 0.6  # share of the time in which the learning rate falls to zero


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make the untrained model: 3.3 million parameters, with shared input and output embeddings."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=512,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        # Slow rotation, so that matching by content does not depend on the distance of the match.
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    build_in_copying(model)
    return model


def loss_of(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Return the weighted mean cross-entropy of all next tokens with a nonzero weight."""
    weights = batch.weights[:, 1:]
    counted = weights > 0  # two thirds of the tokens have no weight and need no logits
    # Measured on a CPU with bfloat16 products: 2.3 times as fast as float32. Weights and loss stay float32.
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=batch.token_ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, :-1][counted])
    losses = functional.cross_entropy(logits.float(), batch.token_ids[:, 1:][counted], reduction="none")
    return (losses * weights[counted]).sum() / weights.sum()


def rate_at(progress: float) -> float:
    """Return the fraction of the peak learning rate at `progress` (0 to 1): linear rise, plateau, linear fall."""
    return min(1.0, (progress + 1e-3) / WARM_UP, (1.0 - progress) / COOL_DOWN)


def watched_cases() -> list[Case]:
    """Return held-out chats of every kind, to watch the accuracy during training."""
    watched = list(cases(WATCH_DOCUMENTS // 2, WATCH_SEED))
    for document in generate_documents(WATCH_DOCUMENTS, WATCH_SEED):
        question, answer = prompts.questions(document)[0]
        request = prompts.EXTRACTION_PROMPT.format(text=document.text)
        watched.append(Case("JSON", [user(request)], prompts.answer_json(document)))
        chat = [user(prompts.CHAT_PROMPT.format(question=question, text=document.text))]
        watched.append(Case("chat", chat, answer))
    return watched


def write_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the model as bfloat16 safetensors with its tokenizer, chat template and generation defaults."""
    state = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    copy = LlamaForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(state)
    copy.tie_weights()
    copy.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    copy.save_pretrained(out)
    write_tokenizer(tokenizer, out)


def write_tokenizer(tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the tokenizer under the class name that every transformers version knows."""
    tokenizer.save_pretrained(out)
    path = out / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=50.0)
    parser.add_argument("--save-minutes", type=float, default=2.0)
    parser.add_argument("--batch-tokens", type=int, default=6144)
    parser.add_argument("--matrix-rate", type=float, default=0.01)
    parser.add_argument("--embedding-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--init", type=Path, help="directory of a model to start from")
    parser.add_argument("--resume", action="store_true", help="continue from DIR/training.pt")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    state_path = arguments.out / "training.pt"

    if arguments.resume:
        tokenizer = AutoTokenizer.from_pretrained(arguments.out)
    elif arguments.init is not None:
        tokenizer = AutoTokenizer.from_pretrained(arguments.init)
        write_tokenizer(tokenizer, arguments.out)
    else:
        tokenizer = train_tokenizer(generate_documents(6_000, TOKENIZER_SEED))
        write_tokenizer(tokenizer, arguments.out)
    model = new_model(tokenizer)
    if arguments.init is not None:
        initial = LlamaForCausalLM.from_pretrained(arguments.init, dtype=torch.float32)
        model.load_state_dict(initial.state_dict())
    early_share, later_mix = (0.0, FURTHER_MIX) if arguments.init is not None else (EARLY_SHARE, LATER_MIX)
    watched = watched_cases()
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    rest = [
        parameter for parameter in model.parameters() if all(parameter is not matrix for matrix in matrices)
    ]
    optimizers = [
        Muon(matrices, lr=arguments.matrix_rate),
        torch.optim.AdamW(rest, lr=arguments.embedding_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    peak_rates = [arguments.matrix_rate, arguments.embedding_rate]
    step, tokens, seconds_before, best = 0, 0, 0.0, -1.0
    if arguments.resume:
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        step, tokens, seconds_before, best = state["step"], state["tokens"], state["seconds"], state["best"]
    print(f"{sum(parameter.numel() for parameter in model.parameters())} parameters", flush=True)

    # A resumed run draws a new stream, because the position in the old one is not saved.
    seed = random.Random(f"{arguments.seed} {step}").randrange(1 << 30)
    mix = EARLY_MIX if seconds_before == 0 and early_share else later_mix
    stream = BatchStream(tokenizer, seed, arguments.batch_tokens, *mix)
    started = last_save = time.monotonic()
    progress, running_loss = 0.0, math.nan
    while progress < 1.0:
        seconds = seconds_before + time.monotonic() - started
        progress = min(1.0, seconds / (60.0 * arguments.minutes))
        stream.copy_share, stream.prompt_weight = EARLY_MIX if progress < early_share else later_mix
        for optimizer, peak in zip(optimizers, peak_rates, strict=True):
            optimizer.param_groups[0]["lr"] = peak * rate_at(progress)
        batch = stream.next_batch()
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        tokens += batch.token_ids.numel()
        running_loss = loss.item() if math.isnan(running_loss) else 0.95 * running_loss + 0.05 * loss.item()
        if step % 25 == 0:
            print(
                f"{seconds / 60:6.1f} min  step {step:5d}  {tokens / 1e6:6.2f} M tokens"
                f"  loss {running_loss:.4f}",
                flush=True,
            )
        if progress >= 1.0 or time.monotonic() - last_save > 60.0 * arguments.save_minutes:
            shares = exact_shares(model, tokenizer, watched, autocast=True)
            listed = ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items())
            print(f"{seconds / 60:6.1f} min  held out: {listed}", flush=True)
            if sum(shares.values()) >= best:
                best = sum(shares.values())
                write_model(model, tokenizer, arguments.out)
            torch.save(
                {
                    "model": model.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "step": step,
                    "tokens": tokens,
                    "seconds": seconds_before + time.monotonic() - started,
                    "best": best,
                },
                state_path,
            )
            last_save = time.monotonic()


if __name__ == "__main__":
    main()
