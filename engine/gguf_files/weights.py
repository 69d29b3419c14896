"""Unpacks the weights of a GGUF file into safetensors files, tensor by tensor.

transformers' reader knows what each tensor is called in its models and how its values are arranged there. It would
hold the whole model in memory; here at most one shard and one layer are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PretrainedConfig
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from engine.gguf_files.header import GgufHeader
from engine.gguf_files.rotary import FACTORS
from engine.gguf_files.stored_values import read_values
from engine.runner.base import UnsupportedModel
from engine.runner.model.checkpoint import draw_model

SHARD_BYTES = 1 << 30
_IN_CONFIG = {FACTORS}  # tensors that become part of the configuration

Report = Callable[[float], None]


def num_weight_bytes(header: GgufHeader, dtype: torch.dtype) -> int:
    """The size of the unpacked weights."""
    return sum(torch.Size(tensor.shape).numel() for tensor in header.tensors.values()) * dtype.itemsize


def write_weights(
    header: GgufHeader, config: PretrainedConfig, dtype: torch.dtype, directory: Path, report: Report
) -> None:
    """Writes the weights, and calls `report` with the share that is done. Raises UnsupportedModel."""
    model = draw_model(config, torch.device("meta"), dtype)
    processors: dict[str, Any] = TENSOR_PROCESSORS
    processor = processors.get(header.architecture, TensorProcessor)(config=config.to_dict())
    names = get_gguf_hf_weights_map(_Names(model), processor)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    writer = _ShardWriter(header.path, directory, dtype, shapes)
    # A processor that joins several tensors of a layer into one puts it there by itself.
    ready: dict[str, torch.Tensor] = {}
    layer = ""
    num_bytes = sum(tensor.num_bytes for tensor in header.tensors.values())
    done = 0
    for name, tensor in header.tensors.items():
        if layer != (layer := name.split(".")[1] if name.startswith("blk.") else ""):
            writer.add(ready)
            ready = {}
        processed = processor.process(
            read_values(header, tensor),
            name,
            tensor_key_mapping=names,
            parsed_parameters={"tensors": ready},
        )
        if processed.name in names:
            values = processed.weights if processed.weights.flags.c_contiguous else processed.weights.copy()
            ready[names[processed.name]] = torch.from_numpy(values).to(dtype)
        elif processed.name is not None and name not in _IN_CONFIG:
            raise UnsupportedModel(
                f"{header.path} cannot be converted: transformers' GGUF reader has no place for its tensor {name} in "
                f"a model of the architecture {header.architecture}; use the model's directory with safetensors weights"
            )
        done += tensor.num_bytes
        report(done / num_bytes)
    writer.add(ready)
    tied = set(model._tied_weights_keys or ()) if config.tie_word_embeddings else set()
    writer.finish(tied)


class _Names:
    """What names in a file are compared with: those of the model, and those of the model without its output layer.

    transformers would go on and compare those of every module, which takes seconds and finds nothing more.
    """

    def __init__(self, model: Any, *, is_whole: bool = True) -> None:
        self.config = model.config
        self.state_dict = model.state_dict
        prefix = model.base_model_prefix
        inner = getattr(model, prefix, None) if is_whole else None
        self._children = [] if inner is None else [(prefix, _Names(inner, is_whole=False))]

    def named_children(self) -> list[tuple[str, _Names]]:
        return self._children


class _ShardWriter:
    """Collects tensors, and writes a file whenever there are enough."""

    def __init__(
        self, source: Path, directory: Path, dtype: torch.dtype, shapes: dict[str, tuple[int, ...]]
    ) -> None:
        self._source = source
        self._directory = directory
        self._dtype = dtype
        self._missing = dict(shapes)
        self._shard: dict[str, torch.Tensor] = {}
        self._shard_bytes = 0
        self._num_shards = 0
        self._total_bytes = 0
        self._files: dict[str, str] = {}

    def add(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if (shape := self._missing.pop(name, None)) != tuple(tensor.shape):
                raise UnsupportedModel(
                    f"{self._source} cannot be converted: its tensor for {name} has the shape {list(tensor.shape)}, "
                    f"where its metadata make it {'another one' if shape is None else list(shape)}; use another file"
                )
            self._shard[name] = tensor.to(self._dtype).contiguous()
            self._shard_bytes += tensor.numel() * self._dtype.itemsize
        if self._shard_bytes >= SHARD_BYTES:
            self._write()

    def finish(self, tied: set[str]) -> None:
        """Writes the rest, and the index. `tied` need not be there: they are the same as others."""
        missing = sorted(self._missing.keys() - tied)
        if missing:
            raise UnsupportedModel(
                f"{self._source} cannot be converted: it lacks {len(missing)} of the model's tensors, such as "
                f"{missing[0]}; use another file"
            )
        self._write()
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": self._files}
        (self._directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")

    def _write(self) -> None:
        if not self._shard:
            return
        self._num_shards += 1
        name = f"model-{self._num_shards:05d}.safetensors"
        try:
            save_file(self._shard, self._directory / name, {"format": "pt"})
        except SafetensorError as error:  # "I/O error: No space left on device (os error 28)"
            raise OSError(f"the weights cannot be written to {self._directory.parent}: {error}") from error
        shutil.copymode(self._source, self._directory / name)  # safetensors lets nobody else read them
        self._files.update(dict.fromkeys(self._shard, name))
        self._total_bytes += self._shard_bytes
        self._shard, self._shard_bytes = {}, 0
