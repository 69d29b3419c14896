"""Tensor parallelism: how the ranks, processes that each hold a part of every layer, split a model and communicate.

transformers splits the model by the plan that its configuration names: the heads of a layer and the rows of its first
matrices go to the ranks in equal parts, and sums over the ranks make the layer's outputs whole again. So every rank
sees the same hidden states and logits, keeps the K and V of its own heads, and must make the same calls in the same
order as the others.
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

# Ranks read their parts of a large model at different speeds. The process that started them notices when one dies.
_TIMEOUT = timedelta(hours=2)
# Ranks that fail in the same pass do so at almost the same time.
_FAILURE_TIMEOUT = timedelta(seconds=10)
# Sizes of a model that are split. Not every version of transformers can join parts of different sizes.
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
    """All ranks, as seen by rank `number`. Each call waits until the others make the same one."""

    number: int
    size: int
    device: torch.device  # of this rank
    store: Any = None  # what all of them can read and write without waiting for each other

    @staticmethod
    def join(rendezvous: str, number: int, size: int, device: torch.device) -> Ranks:
        """Waits for all ranks. `rendezvous` is the path of a file that does not exist yet, the same for all."""
        is_gpu = device.type == "cuda"
        store = dist.FileStore(rendezvous, size)  # type: ignore[attr-defined]
        dist.init_process_group(
            "nccl" if is_gpu else "gloo",
            store=store,
            rank=number,
            world_size=size,
            timeout=_TIMEOUT,
            device_id=device if is_gpu else None,
        )
        return Ranks(number, size, device, store)

    def minimum(self, value: int) -> int:
        """Returns the minimum of the ranks' values."""
        values = torch.tensor([value], device=self.device)
        dist.all_reduce(values, dist.ReduceOp.MIN)
        return int(values)

    @torch.inference_mode()
    def broadcast(self, values: torch.Tensor) -> None:
        """Replaces `values`, which has the same shape on all ranks, by those of rank 0, in place. The host does not
        wait for a GPU."""
        dist.broadcast(values, src=0)

    def all_have_failed(self, number: int) -> bool:
        """Whether all ranks raised an error in pass `number`, as this one did, so that they can go on together. If not,
        the others wait for this rank's part of a sum, and it must end."""
        key = f"failed/{number}"
        self.store.set(f"{key}/{self.number}", b"1")
        try:
            self.store.wait([f"{key}/{rank}" for rank in range(self.size)], _FAILURE_TIMEOUT)
        except RuntimeError:  # they have not, within that time
            return False
        return True

    def leave(self) -> None:
        dist.destroy_process_group()


def why_not_splittable(config: PretrainedConfig, size: int) -> str | None:
    """The reason why the model cannot be split among `size` ranks, or None if it can."""
    text_config = config.get_text_config()
    if not text_config.base_model_tp_plan:
        return "transformers has no plan for splitting this architecture"
    for name in _SPLIT_SIZES:
        value = getattr(text_config, name, None)
        if isinstance(value, int) and value % size:
            return f"its {name}, {value}, is not a multiple of {size}"
    if find_spec("accelerate") is None:
        return "transformers splits models only if the package accelerate is installed"
    return None


@contextmanager
def split_among(ranks: Ranks | None) -> Iterator[dict[str, Any]]:
    """Yields the options with which `from_pretrained` loads this rank's part, inside the context; none for None."""
    if ranks is None:
        yield {}
        return
    from transformers.distributed.configuration_utils import DistributedConfig

    # transformers arranges the ranks over the kind of accelerator that torch was built for, even if there is none or
    # the CPU is to compute, and has no option for another.
    own = torch._C._get_accelerator
    torch._C._get_accelerator = lambda *_: torch.device(ranks.device.type)
    try:
        yield {"distributed_config": DistributedConfig(tp_size=ranks.size)}
    finally:
        torch._C._get_accelerator = own
