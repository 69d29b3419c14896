"""Peak rates of the device, from which all floors are computed. The data is random, because zeros are faster."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear

from benchmarks.gpu.report import Part, Run, brief
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.timing import Stopwatch

NUM_LAUNCHES = 500
# The products of a layer of Llama-3-8B: query, key and value; output; gate and up; down.
PRODUCT_SHAPES = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
TINY_PRODUCT_SHAPES = ((96, 64), (64, 128))


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Bytes per second read plus written by a copy, and operations per second of a large product, also in float8."""

    bytes_per_s: float
    flops_per_s: float
    fp8_flops_per_s: float | None = None  # None: the device does not multiply float8

    def floor_s(self, num_bytes: float, num_flops: float, num_fp8_flops: float = 0.0) -> float:
        """Return the minimum time of any kernels that move this many bytes and do this many operations."""
        products_s = num_flops / self.flops_per_s + num_fp8_flops / (self.fp8_flops_per_s or self.flops_per_s)
        return max(num_bytes / self.bytes_per_s, products_s)


def ceilings_of(run: Run, watch: Stopwatch, scale: Scale) -> Ceilings:
    """Return the ceilings of the run, and measure them first if they are not known yet."""
    known = run.result["parts"].get("ceilings", {}).get("figures", {})
    if {"copy", "product"} <= set(known):
        fp8 = known.get("product in float8", {}).get("tflop_per_s")
        return Ceilings(
            known["copy"]["gb_per_s"] * 1e9,
            known["product"]["tflop_per_s"] * 1e12,
            None if fp8 is None else fp8 * 1e12,
        )
    part = run.part("ceilings")
    ceilings = measure_ceilings(part, watch, scale, torch.bfloat16 if watch.is_cuda else torch.float32)
    part.save()
    if watch.is_cuda:
        torch.cuda.empty_cache()
    return ceilings


def measure_ceilings(part: Part, watch: Stopwatch, scale: Scale, dtype: torch.dtype) -> Ceilings:
    """Measure the ceilings, even if no time is left, because all floors need them."""
    source = random_bytes(scale.copy_bytes, watch.device)
    target = torch.empty_like(source)
    copy_s = watch.seconds(lambda: target.copy_(source))
    words = source.view(torch.int32)
    read_s = watch.seconds(lambda: words.sum(dtype=torch.int32))
    size = scale.product_size
    a, b = (torch.randn(size, size, device=watch.device, dtype=dtype) for _ in range(2))
    product_s = watch.seconds(lambda: a @ b, is_cold=False)
    fp8_s = None
    try:
        fp8_s = _fp8_product_s(watch, size)
    except RuntimeError as error:  # the floors of all other measurements are known
        part.fail("product in float8", error)
    fp8_flops_per_s = None if fp8_s is None else 2 * size**3 / fp8_s
    ceilings = Ceilings(2 * source.nbytes / copy_s, 2 * size**3 / product_s, fp8_flops_per_s)
    part.figures |= {
        "device": about_device(watch.device),
        "copy": {"gb_per_s": ceilings.bytes_per_s / 1e9},
        "read": {"gb_per_s": source.nbytes / read_s / 1e9},
        "product": {"tflop_per_s": ceilings.flops_per_s / 1e12, "dtype": str(dtype)},
    }
    if fp8_flops_per_s is not None:
        part.figures["product in float8"] = {"tflop_per_s": fp8_flops_per_s / 1e12}
    for name, figures in part.figures.items():
        print(f"  {name:44} {brief(figures)}", flush=True)
    part.measure("products by tokens", lambda: _products_by_tokens(watch, scale, dtype, ceilings))
    part.measure("launch", lambda: _launch_us(watch))
    part.measure("host copies", lambda: _host_copies(watch, scale))
    return ceilings


def _fp8_product_s(watch: Stopwatch, size: int) -> float | None:
    """Time a product as `--quantization fp8` computes it; None if the device has no instructions for it."""
    if not watch.is_cuda or torch.cuda.get_device_capability(watch.device) < (8, 9):
        return None
    a, b = (torch.randn(size, size, device=watch.device).to(torch.float8_e4m3fn) for _ in range(2))
    a_scales, b_scales = (torch.ones(shape, device=watch.device) for shape in ((size, 1), (1, size)))

    def work() -> torch.Tensor:
        return torch._scaled_mm(
            a, b.t(), scale_a=a_scales, scale_b=b_scales, out_dtype=torch.bfloat16, use_fast_accum=False
        )

    return watch.seconds(work, is_cold=False)


def _products_by_tokens(
    watch: Stopwatch, scale: Scale, dtype: torch.dtype, ceilings: Ceilings
) -> dict[str, list[float]]:
    """Measure the products of one layer of an 8B model at several numbers of tokens.

    A product is divided into tiles, and the last wave of tiles may leave most of a GPU idle. Where the share of the
    peak falls from one number of tokens to the next, a step of fewer tokens computes more tokens per second.
    """
    shapes = PRODUCT_SHAPES if not scale.shape else TINY_PRODUCT_SHAPES
    weights = [torch.randn(*shape, device=watch.device, dtype=dtype) for shape in shapes]
    figures: dict[str, list[float]] = {"tokens": [], "us": [], "share_of_peak": []}
    for num_tokens in scale.product_tokens:
        inputs = {
            width: torch.randn(num_tokens, width, device=watch.device, dtype=dtype) for _, width in shapes
        }

        def layer(inputs: dict[int, torch.Tensor] = inputs) -> None:
            for weight in weights:
                linear(inputs[weight.shape[1]], weight)

        seconds = watch.seconds(layer, is_cold=False, max_s=0.1, max_runs=20)
        num_flops = sum(2 * num_tokens * weight.numel() for weight in weights)
        figures["tokens"].append(num_tokens)
        figures["us"].append(seconds * 1e6)
        figures["share_of_peak"].append(num_flops / seconds / ceilings.flops_per_s)
    return figures


def about_device(device: torch.device) -> dict[str, Any]:
    """Describe the device and its software, in addition to the description of the machine in every result."""
    if device.type != "cuda":
        return {"name": device.type, "threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
    }


def random_bytes(num_bytes: int, device: torch.device) -> torch.Tensor:
    """[num_bytes] uint8"""
    return torch.randint(0, 2**31 - 1, (num_bytes // 4,), dtype=torch.int32, device=device).view(torch.uint8)


def _launch_us(watch: Stopwatch) -> dict[str, float]:
    """Time a kernel launch: one of many queued ones, one that is awaited, and one in a replayed graph."""
    x = torch.zeros(1, device=watch.device)

    def launch() -> None:
        for _ in range(NUM_LAUNCHES):
            x.add_(1)

    launch()
    watch.wait()
    started_s = time.perf_counter()
    launch()
    launched_s = time.perf_counter() - started_s
    watch.wait()
    times_s = []
    for _ in range(50):
        started_s = time.perf_counter()
        x.add_(1)
        watch.wait()
        times_s.append(time.perf_counter() - started_s)
    figures = {"queued_us": launched_s / NUM_LAUNCHES * 1e6, "awaited_us": sorted(times_s)[25] * 1e6}
    if watch.is_cuda:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            launch()
        figures["in_graph_us"] = watch.seconds(graph.replay, is_cold=False) / NUM_LAUNCHES * 1e6
    return figures


def _host_copies(watch: Stopwatch, scale: Scale) -> dict[str, float]:
    """Measure copies between pinned host memory and the device; on a CPU, between two places in its memory."""
    on_device = random_bytes(scale.copy_bytes // 4, watch.device)
    on_host = torch.empty(len(on_device), dtype=torch.uint8, pin_memory=watch.is_cuda)
    to_host_s = watch.seconds(lambda: on_host.copy_(on_device, non_blocking=True), is_cold=False)
    to_device_s = watch.seconds(lambda: on_device.copy_(on_host, non_blocking=True), is_cold=False)
    gigabytes = on_device.nbytes / 1e9
    return {"to_device_gb_per_s": gigabytes / to_device_s, "to_host_gb_per_s": gigabytes / to_host_s}
