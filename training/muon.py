"""The Muon optimizer for weight matrices: momentum, orthogonalized by a Newton-Schulz iteration.

Source: Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). Matrices of equal shape
are stacked here, because 35 small products take a CPU longer than four batched ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor


def orthogonalize(stack: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of each matrix in a [count, rows, columns] stack close to 1 (Newton-Schulz)."""
    # Coefficients from the source: the steepest slope at zero whose results still lie within about [0.7, 1.2].
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = stack.size(1) > stack.size(2)
    x = stack.transpose(1, 2) if tall else stack
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for the 2-D weights of hidden layers only. Use AdamW for embeddings and norms."""

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                updates = []
                for parameter in parameters:
                    buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                    buffer.lerp_(parameter.grad, 1 - group["momentum"])
                    updates.append(parameter.grad.lerp(buffer, group["momentum"]))  # Nesterov
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                # The iteration does not need float32 precision, and takes a third of the time in bfloat16.
                steps = orthogonalize(torch.stack(updates).bfloat16()).float()
                for parameter, update in zip(parameters, steps, strict=True):
                    parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"] * scale)
