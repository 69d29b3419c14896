"""The values of a tensor in a GGUF file, unpacked to float32 by the `gguf` package."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from engine.gguf_files.header import GgufHeader, StoredTensor
from engine.runner.base import UnsupportedModel

_PLAIN = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}


def read_values(header: GgufHeader, tensor: StoredTensor) -> npt.NDArray[np.float32]:
    """Unpacks one tensor. Raises UnsupportedModel if the package cannot unpack its type."""
    kind = GGMLQuantizationType(tensor.type_id)
    stored = np.memmap(header.path, np.uint8, "r", tensor.start, (tensor.num_bytes,))
    if kind in _PLAIN:
        return stored.view(_PLAIN[kind]).reshape(tensor.shape).astype(np.float32)
    values_per_block, bytes_per_block = GGML_QUANT_SIZES[kind]
    *rows, columns = tensor.shape
    try:
        return dequantize(stored.reshape(*rows, columns // values_per_block * bytes_per_block), kind)
    except NotImplementedError:
        raise UnsupportedModel(
            f"{header.path} holds tensors of type {kind.name}, which the installed package gguf cannot unpack; use a "
            "file of another quantization, such as Q4_K_M or Q8_0"
        ) from None
