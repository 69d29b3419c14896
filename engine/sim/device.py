"""Simulated devices: how long a step takes and how much memory there is.

The scheduler does not see these numbers; it has to learn them from noisy steps.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from math import inf, isfinite


@dataclass(frozen=True, slots=True)
class StepCost:
    """The coefficients, in seconds, of the time that a step takes:

        T = step + max(weights, token * tokens) + row * rows + max(context * read, pair * pairs) + copied * copied

    This is a roofline model (Williams et al., 2009). Linear layers take the longer of the times to read the weights and
    to compute the tokens. Attention takes the longer of the times to read the contexts of all rows (`read` tokens in
    total) and to compute all pairs of a token and one before it. `copied` tokens move to or from host memory.
    """

    step_s: float = 0.0
    weights_s: float = 0.0
    token_s: float = 0.0
    row_s: float = 0.0
    context_s: float = 0.0
    pair_s: float = 0.0
    copied_s: float = 0.0

    def step_time_s(self, tokens: int, rows: int, read: int, pairs: float, copied: int) -> float:
        """The time of a step with these numbers of tokens."""
        return (
            self.step_s
            + max(self.weights_s, self.token_s * tokens)
            + self.row_s * rows
            + max(self.context_s * read, self.pair_s * pairs)
            + self.copied_s * copied
        )


@dataclass(frozen=True, slots=True)
class Slowdown:
    """A time in which something else uses the machine as well: from `from_s` to `until_s`, steps take `factor` times as
    long."""

    factor: float
    from_s: float = 0.0
    until_s: float = inf

    def factor_at(self, now_s: float) -> float:
        """How many times as long a step takes that begins at `now_s`."""
        return self.factor if self.from_s <= now_s < self.until_s else 1.0


NEVER = Slowdown(1.0)


@dataclass(frozen=True, slots=True)
class Device:
    """A device that serves a model.

    `kv_tokens` and `host_tokens` are what fits into its memory and that of the host. The other limits are those with
    which an engine runs best on it.
    """

    name: str
    cost: StepCost
    kv_tokens: int
    host_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class _Transformer:
    """The dimensions of a decoder-only model in bfloat16."""

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
        """Size of the K and V of one token in all layers."""
        return 2 * 2 * self.num_layers * self.num_kv_heads * self.head_dim

    @property
    def flops_per_token(self) -> float:
        """Operations in linear layers: one multiplication and one addition per parameter."""
        return 2 * self.num_params

    @property
    def flops_per_pair(self) -> float:
        """Operations in attention: per layer and head, two products of head_dim numbers."""
        return 4 * self.num_layers * self.num_heads * self.head_dim


LLAMA_8B = _Transformer(8.03e9, 32, 32, 8, 128)  # Llama 3.1 8B
# Fractions of the data sheet's numbers that good kernels reach.
BANDWIDTH_SHARE, FLOPS_SHARE, LINK_SHARE = 0.8, 0.6, 0.8
MEMORY_SHARE = 0.9  # fraction of the device's memory that weights and KV use
STEP_S, ROW_S = 2e-3, 1e-5  # launching and sampling; the order of magnitude, not measured


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
    """Make a GPU from its data sheet: bytes of memory, bytes per second from memory, bfloat16 operations per second,
    and bytes per second to the host.

        weights_s = weight bytes / (0.8 bandwidth)         token_s = 2 params / (0.6 flops)
        context_s = KV bytes per token / (0.8 bandwidth)   pair_s = 4 layers heads head_dim / (0.6 flops)
        copied_s  = KV bytes per token / (0.8 link)        kv_tokens = (0.9 memory - weight bytes) / KV bytes per token
    """
    bandwidth, flops, link = bandwidth * BANDWIDTH_SHARE, flops * FLOPS_SHARE, link * LINK_SHARE
    cost = StepCost(
        step_s=STEP_S,
        weights_s=model.weight_bytes / bandwidth,
        token_s=model.flops_per_token / flops,
        row_s=ROW_S,
        context_s=model.kv_bytes / bandwidth,
        pair_s=model.flops_per_pair / flops,
        copied_s=model.kv_bytes / link,
    )
    kv_tokens = int((MEMORY_SHARE * memory_bytes - model.weight_bytes) / model.kv_bytes)
    return Device(name, cost, kv_tokens, kv_tokens, max_num_seqs, max_num_batched_tokens, max_model_len=16384)


_ALL = (
    # An 88M-parameter Llama in bfloat16 on one core. Decode steps with a context of 300, from benchmarks/LOG.md:
    #
    #     rows       1      8     64
    #     measured  10.7   16.6   74   ms
    #     model     10.3   17.3   73.3 ms
    #
    # The 1 ms per row consists of 0.27 ms per token (as for prompts), 0.44 ms to read 300 tokens (attention's share of
    # the float32 step there), and the remainder, row_s. A pair takes 4*12*768 operations at 100 GFLOP/s. Copies run at
    # 5 GB/s.
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
    # NVIDIA A100 80GB SXM: 2.04 TB/s, 312 TFLOP/s dense bfloat16, PCIe 4 x16. A full step takes 90 ms.
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
    # NVIDIA H200 SXM: 141 GB, 4.8 TB/s, 989 TFLOP/s dense bfloat16, PCIe 5 x16. A full step takes 60 ms.
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
    """Parse the description of a device. Raises ValueError, which lists the possible names, if it is invalid.

    It is the name of a preset; or coefficients, as in `step_s=0.006,token_s=0.0003`, where the others are zero and the
    limits are those of cpu-mini; or a name and the coefficients to change, as in `h200-8b,step_s=0.004`.
    """
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
            raise ValueError(f"{key!r} is not a coefficient; there are {known}")
        try:
            given[key] = float(value)
        except ValueError:
            raise ValueError(f"{key} is {value!r}, which is not a number of seconds") from None
        if not isfinite(given[key]) or given[key] < 0:
            raise ValueError(f"{key} is {value}; it must be zero or more seconds")
    if not given:
        return device
    cost = dataclasses.replace(device.cost, **given)
    if not any(dataclasses.astuple(cost)):
        raise ValueError("the steps of this device take no time; give at least step_s")
    return dataclasses.replace(device, name=text, cost=cost)


def parse_slowdown(text: str) -> Slowdown:
    """Parse `FACTOR@FROM` or `FACTOR@FROM-UNTIL`, with times in seconds. Raises ValueError if it is invalid."""
    factor, _, times = text.partition("@")
    begin, _, end = times.partition("-")
    try:
        found = Slowdown(float(factor), float(begin), float(end) if end else inf)
    except ValueError:
        raise ValueError(f"{text!r} is not a slowdown; write one like 3@60 or 3@60-120") from None
    if not (0 < found.factor < inf and 0 <= found.from_s < found.until_s):
        raise ValueError(
            f"{text!r} is not a slowdown; the factor must be positive and the end after the beginning"
        )
    return found
