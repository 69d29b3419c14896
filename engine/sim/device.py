"""What simulated devices cost and hold. These are theirs alone: the scheduler has to learn them, from noisy steps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from math import isfinite


@dataclass(frozen=True, slots=True)
class StepCost:
    """Coefficients of a step's time, in seconds:

        T = step + max(weights, token * tokens) + row * rows + max(context * read, pair * pairs) + copied * copied

    A roofline (Williams et al., 2009): linear layers take as long as reading the weights or computing the tokens,
    whichever is longer; attention as long as reading each row's context (`read` tokens in all) or computing every
    (token, token before it) pair. `copied` tokens move to or from host memory.
    """

    step_s: float = 0.0
    weights_s: float = 0.0
    token_s: float = 0.0
    row_s: float = 0.0
    context_s: float = 0.0
    pair_s: float = 0.0
    copied_s: float = 0.0

    def of(self, tokens: int, rows: int, read: int, pairs: float, copied: int) -> float:
        return (
            self.step_s
            + max(self.weights_s, self.token_s * tokens)
            + self.row_s * rows
            + max(self.context_s * read, self.pair_s * pairs)
            + self.copied_s * copied
        )


@dataclass(frozen=True, slots=True)
class Device:
    """A device with a model on it. `kv_tokens` and `host_tokens` fit into its and the host's memory; the rest are the
    limits its engine is best started with."""

    name: str
    cost: StepCost
    kv_tokens: int
    host_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class _Transformer:
    """A decoder-only model in bfloat16."""

    num_params: float
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def weight_bytes(self) -> float:
        return 2 * self.num_params

    @property
    def kv_bytes(self) -> float:
        """Of one token: K and V, in each layer."""
        return 2 * 2 * self.num_layers * self.num_kv_heads * self.head_dim

    @property
    def flops_a_token(self) -> float:
        """In linear layers: a multiplication and an addition for each parameter."""
        return 2 * self.num_params

    @property
    def flops_a_pair(self) -> float:
        """In attention: two products of head_dim numbers a head, in each layer."""
        return 4 * self.num_layers * self.num_heads * self.head_dim


LLAMA_8B = _Transformer(8.03e9, 32, 32, 8, 128)  # Llama 3.1 8B
# Of the data sheet's numbers, what good kernels reach.
BANDWIDTH_SHARE, FLOPS_SHARE, LINK_SHARE = 0.8, 0.6, 0.8
MEMORY_SHARE = 0.9  # of the device's memory, for weights and KV
STEP_S, ROW_S = 2e-3, 1e-5  # launching and sampling; an order of magnitude, from no measurement of ours


def _roofline(
    name: str,
    model: _Transformer,
    *,
    memory_bytes: float,
    bandwidth: float,
    flops: float,
    link: float,
    max_num_seqs: int,
    max_num_batched_tokens: int,
) -> Device:
    """A GPU by its data sheet: bytes of memory, bytes a second from it, bfloat16 operations a second, bytes a second to
    the host.

        weights_s = weight bytes / (0.8 bandwidth)      token_s = 2 params / (0.6 flops)
        context_s = KV bytes of a token / (0.8 bandwidth)      pair_s = 4 layers heads head_dim / (0.6 flops)
        copied_s  = KV bytes of a token / (0.8 link)      kv_tokens = (0.9 memory - weight bytes) / KV bytes of a token
    """
    bandwidth, flops, link = bandwidth * BANDWIDTH_SHARE, flops * FLOPS_SHARE, link * LINK_SHARE
    cost = StepCost(
        step_s=STEP_S,
        weights_s=model.weight_bytes / bandwidth,
        token_s=model.flops_a_token / flops,
        row_s=ROW_S,
        context_s=model.kv_bytes / bandwidth,
        pair_s=model.flops_a_pair / flops,
        copied_s=model.kv_bytes / link,
    )
    kv_tokens = int((MEMORY_SHARE * memory_bytes - model.weight_bytes) / model.kv_bytes)
    return Device(name, cost, kv_tokens, kv_tokens, max_num_seqs, max_num_batched_tokens, max_model_len=16384)


_ALL = (
    # An 88M-parameter Llama in bfloat16 on one core. Decode steps with a context of 300 as in benchmarks/LOG.md:
    #
    #     rows       1      8     64
    #     measured  10.7   16.6   74   ms
    #     this      10.3   17.3   73.3 ms
    #
    # 1 ms a row is 0.27 ms a token (what prompts cost), 0.44 ms to read 300 tokens (attention's share of the float32
    # step there), and the rest. A pair is 4*12*768 operations at 100 GFLOP/s; copies go at 5 GB/s.
    Device(
        "cpu-mini",
        StepCost(
            step_s=9.3e-3, token_s=0.27e-3, row_s=0.29e-3, context_s=1.46e-6, pair_s=0.37e-6, copied_s=2.5e-6
        ),
        kv_tokens=32768,
        host_tokens=32768,
        max_num_seqs=64,
        max_num_batched_tokens=128,
        max_model_len=2048,
    ),
    # NVIDIA A100 80GB SXM: 2.04 TB/s, 312 TFLOP/s dense bfloat16, PCIe 4 x16. Tokens a step: full ones take 90 ms.
    _roofline(
        "a100-8b",
        LLAMA_8B,
        memory_bytes=80e9,
        bandwidth=2.039e12,
        flops=312e12,
        link=32e9,
        max_num_seqs=256,
        max_num_batched_tokens=1024,
    ),
    # NVIDIA H200 SXM: 141 GB, 4.8 TB/s, 989 TFLOP/s dense bfloat16, PCIe 5 x16. Full steps take 60 ms.
    _roofline(
        "h200-8b",
        LLAMA_8B,
        memory_bytes=141e9,
        bandwidth=4.8e12,
        flops=989e12,
        link=64e9,
        max_num_seqs=256,
        max_num_batched_tokens=2048,
    ),
)
DEVICES = {device.name: device for device in _ALL}


def parse_device(text: str) -> Device:
    """A preset's name; or coefficients, as in `step_s=0.006,token_s=0.0003`, the others zero and the limits those of
    cpu-mini; or both, to change a preset: `h200-8b,step_s=0.004`. Raises ValueError with what there is."""
    name, _, rest = text.partition(",")
    device = DEVICES.get(name)
    if device is None and "=" not in name:
        raise ValueError(
            f"there is no device {name!r}; there are {', '.join(DEVICES)}, or give coefficients like "
            "step_s=0.006,token_s=0.0003"
        )
    if device is None:
        rest = text
        device = dataclasses.replace(DEVICES["cpu-mini"], name="custom", cost=StepCost())
    given: dict[str, float] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in {field.name for field in dataclasses.fields(StepCost)}:
            known = ", ".join(field.name for field in dataclasses.fields(StepCost))
            raise ValueError(f"{key!r} is no coefficient; there are {known}")
        try:
            given[key] = float(value)
        except ValueError:
            raise ValueError(f"{key} is {value!r}, which is no number of seconds") from None
        if not isfinite(given[key]) or given[key] < 0:
            raise ValueError(f"{key} is {value}; it must be zero or more seconds")
    if not given:
        return device
    cost = dataclasses.replace(device.cost, **given)
    if not any(dataclasses.astuple(cost)):
        raise ValueError("a device whose steps take no time; give step_s at least")
    return dataclasses.replace(device, name=text, cost=cost)
