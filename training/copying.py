"""Initial weights with copying built in: an induction head in the first two layers of a Llama model.

To copy a name, a transformer combines two attention heads (an "induction head", Olsson et al., 2022). A head in an
early layer stores for every token which token came before it. A head in the next layer looks for the position whose
stored token is the current one and copies the token there. Finding this pair by gradient descent takes most of a short
training run. Here it is part of the initial weights, so training only has to refine it and to learn *what* to copy.

    residual dims   [ token: 128 | before: 48 | two before: 32 | free: 47 | constant: 1 ]
    layer 0         heads 0 and 1 attend one and two tokens back, write "before" and "two before"
    layer 1         heads 0 and 2 match (token, before) with (before, two before), copy "token"
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

TOKEN, BEFORE, TWO_BEFORE, CONSTANT = slice(0, 128), slice(128, 176), slice(176, 208), 255
LOOK_BACK_SHARPNESS = 7.0
MATCH_SHARPNESS = 1.1
COPY_GAIN = 1.0


@torch.no_grad()
def build_in_copying(model: LlamaForCausalLM) -> None:
    """Overwrite the embeddings and the attention of the first two layers.

    The model must have hidden size 256, 4 query heads of size 64 and 2 key heads.
    """
    embedding = model.model.embed_tokens.weight  # [vocabulary, 256]
    embedding[:, TOKEN] = torch.randn_like(embedding[:, TOKEN]) * 128**-0.5
    embedding[:, CONSTANT] = 0.5  # the same for every token; heads that only use positions read it
    code = torch.linalg.qr(torch.randn(128, 64)).Q.T  # [64, 128], a short code of the token
    _look_back(model, code)
    _match_and_copy(model, code)


def _frequencies(model: LlamaForCausalLM) -> Tensor:
    """Return the radians per token of the 32 rotary pairs. Pair i consists of dimensions i and 32 + i of a head."""
    return model.model.rotary_emb.inv_freq


def _look_back(model: LlamaForCausalLM, code: Tensor) -> None:
    attention = model.model.layers[0].self_attn
    query, key = attention.q_proj.weight.view(4, 64, 256), attention.k_proj.weight.view(2, 64, 256)
    value, output = attention.v_proj.weight.view(2, 64, 256), attention.o_proj.weight.view(256, 4, 64)
    frequencies = _frequencies(model)
    fast = frequencies > 0.02  # slower pairs cannot distinguish neighboring positions
    for head, offset, target in ((0, 1, BEFORE), (1, 2, TWO_BEFORE)):
        # The score at distance d is a sum of cos(frequency * (d - offset)): largest at d = offset.
        query[head] = 0.0
        query[head, :32, CONSTANT] = LOOK_BACK_SHARPNESS / 3 * fast * torch.cos(frequencies * offset)
        query[head, 32:, CONSTANT] = -LOOK_BACK_SHARPNESS / 3 * fast * torch.sin(frequencies * offset)
        output[:, head] = 0.0
        width = target.stop - target.start
        output[target, head, :width] = torch.eye(width) * 0.2
    key[0] = 0.0
    key[0, :32, CONSTANT] = LOOK_BACK_SHARPNESS / 3 * fast
    value[0] = 0.0
    value[0, :, TOKEN] = code


def _match_and_copy(model: LlamaForCausalLM, code: Tensor) -> None:
    attention = model.model.layers[1].self_attn
    query, key = attention.q_proj.weight.view(4, 64, 256), attention.k_proj.weight.view(2, 64, 256)
    value, output = attention.v_proj.weight.view(2, 64, 256), attention.o_proj.weight.view(256, 4, 64)
    slow = torch.cat(
        [_frequencies(model) < 0.002] * 2
    )  # pairs that hardly rotate over the length of a document
    width = int(slow.sum())
    for head, key_head in ((0, 0), (2, 1)):
        first = torch.randn(width, 48) * width**-0.5
        second = torch.randn(width, 32) * width**-0.5
        matcher = torch.zeros(width, 256)
        matcher[:, TOKEN] = first @ code[:48]
        matcher[:, 128:160] = 0.7 * second  # the first 32 dimensions of "before"
        query[head] = 0.0
        query[head, slow] = MATCH_SHARPNESS * matcher
        matched = torch.zeros(width, 256)
        matched[:, BEFORE] = first
        matched[:, TWO_BEFORE] = 0.7 * second
        key[key_head] = 0.0
        key[key_head, slow] = MATCH_SHARPNESS * matched
        half = slice(64 * key_head, 64 * key_head + 64)  # each of the two heads copies half of the token
        value[key_head] = 0.0
        value[key_head, :, half] = torch.eye(64)
        output[:, head] = 0.0
        output[half, head] = COPY_GAIN * torch.eye(64)
