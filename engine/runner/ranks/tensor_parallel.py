"""What is different for a model that several ranks hold: processes with a part of every layer each.

transformers splits it, by the plan its configuration names: a layer's heads and the rows of its first products go to
the ranks in equal parts, and sums over ranks make the layer's outputs whole again. So every rank sees the same hidden
states and logits, keeps the K and V of its own heads, and has to make the same calls in the same order as the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist
from transformers import PretrainedConfig

# Ranks read their parts of a large model at different speeds. Whoever started them sees when one of them dies.
_TIMEOUT = timedelta(hours=2)
# Sizes of a model that are split. Parts of different sizes are not what every version of transformers can join.
_SPLIT_SIZES = (
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "vocab_size",
)


@dataclass(frozen=True, slots=True)
class Ranks:
    """All of them, as rank `number` sees them. Each call waits for the others to make the same one."""

    number: int
    size: int
    device: torch.device  # of this rank

    @staticmethod
    def join(rendezvous: str, number: int, size: int, device: torch.device) -> Ranks:
        """Waits for all ranks. `rendezvous` is the path of a file that is not there yet, the same for all."""
        is_gpu = device.type == "cuda"
        dist.init_process_group(
            "nccl" if is_gpu else "gloo",
            store=dist.FileStore(rendezvous, size),  # type: ignore[attr-defined]
            rank=number,
            world_size=size,
            timeout=_TIMEOUT,
            device_id=device if is_gpu else None,
        )
        return Ranks(number, size, device)

    def least(self, value: int) -> int:
        """The least of the ranks' values."""
        values = torch.tensor([value], device=self.device)
        dist.all_reduce(values, dist.ReduceOp.MIN)
        return int(values)

    @torch.inference_mode()
    def agree(self, values: torch.Tensor) -> None:
        """Makes `values`, of one shape on all ranks, those of rank 0, in place. The host does not wait for a GPU."""
        dist.broadcast(values, src=0)

    def leave(self) -> None:
        dist.destroy_process_group()


def why_not_splittable(config: PretrainedConfig, size: int) -> str | None:
    """Why the model cannot be split among `size` ranks, if so."""
    text_config = config.get_text_config()
    if not text_config.base_model_tp_plan:
        return "transformers has no plan for splitting this architecture"
    for name in _SPLIT_SIZES:
        value = getattr(text_config, name, None)
        if isinstance(value, int) and value % size:
            return f"its {name}, {value}, is no multiple of {size}"
    if find_spec("accelerate") is None:
        return "transformers splits models only where the package accelerate is installed"
    return None


@contextmanager
def split_among(ranks: Ranks | None) -> Iterator[dict[str, Any]]:
    """Options of `from_pretrained`, to be called inside, that make it load this rank's part; none for None."""
    if ranks is None:
        yield {}
        return
    from transformers.distributed.configuration_utils import DistributedConfig

    # transformers lays the ranks out over the kind of accelerator that torch was built for, even where there is none
    # or the CPU is to compute, and takes no other.
    own = torch._C._get_accelerator
    torch._C._get_accelerator = lambda *_: torch.device(ranks.device.type)
    try:
        yield {"distributed_config": DistributedConfig(tp_size=ranks.size)}
    finally:
        torch._C._get_accelerator = own
