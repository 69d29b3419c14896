"""Other engines on the same documents, in the same process: transformers' continuous batching, and vLLM if installed.

All engines get the same prompts and generate the same numbers of tokens; what counts is the time for all documents.
"""

from __future__ import annotations

import importlib.util
import random
import time
from itertools import islice
from typing import Any

import torch

from benchmarks.gpu.models import Model, dtype_for, free_memory
from benchmarks.gpu.report import Part
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.serving import SEED, Engine
from engine.core.terms import Lane, Policy
from engine.runner.model.checkpoint import draw_model
from engine.sim.traces.synthetic import backlog

Document = tuple[list[int], int]  # prompt, and number of tokens to generate


def documents(scale: Scale, vocab_size: int, count: int) -> list[Document]:
    """Return documents with the lengths of the first ones that this project's engine receives."""
    rng = random.Random(SEED)
    return [
        (rng.choices(range(3, vocab_size), k=arrival.prompt_tokens), arrival.output_tokens)
        for arrival in islice(backlog(scale.documents, Lane.BE, SEED), count)
    ]


def measure_own(part: Part, engine: Engine, scale: Scale) -> None:
    """Measure this project's engine on the documents that the other engines get."""

    def run() -> dict[str, float]:
        started_s = time.perf_counter()
        report = engine.serve(Policy.BROS, None, scale.documents, num_documents=scale.num_documents)
        return _rates(
            time.perf_counter() - started_s, report["be"]["num_succeeded"], report["be"]["output_tokens"]
        )

    part.measure("as many documents as the others get", run)


def measure_others(part: Part, model: Model, device: torch.device, scale: Scale) -> None:
    """Measure the other engines one after another; each has the whole memory of the device."""
    asked = documents(scale, model.config.vocab_size, scale.num_documents)
    name = "transformers continuous batching"
    if device.type == "cpu" and importlib.util.find_spec("psutil") is None:
        part.skipped.append(f"{name} (it needs psutil on a CPU)")
    else:
        part.measure(name, lambda: _transformers(part, model, device, asked), needs_s=1.0)
    free_memory()
    if device.type == "cuda" and importlib.util.find_spec("vllm") is not None:
        part.measure("vllm", lambda: _vllm(model, asked), needs_s=30.0)
        free_memory()


def _transformers(part: Part, model: Model, device: torch.device, asked: list[Document]) -> dict[str, float]:
    """Run until all documents are done or the time of the part is over; then the finished ones count.

    Raises RuntimeError if the engine stops by itself, or if no document was finished.
    """
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    drawn = draw_model(model.config, device, dtype_for(device), "sdpa")
    generation = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, eos_token_id=-1, max_new_tokens=max(count for _, count in asked)
    )
    # On a GPU it chooses its sizes from the free memory; on a CPU they must be given.
    sizes: dict[str, Any] = {} if device.type == "cuda" else {"num_blocks": 64, "max_batch_tokens": 256}
    batching = ContinuousBatchingConfig(allow_block_sharing=False, **sizes)
    num_done = num_tokens = 0
    with drawn.continuous_batching_context_manager(
        generation_config=generation, continuous_batching_config=batching, block=True, timeout=60
    ) as manager:
        started_s = time.perf_counter()
        for prompt, count in asked:
            manager.add_request(prompt, max_new_tokens=count)
        while num_done < len(asked) and part.left_s > 0:
            result = manager.get_result(timeout=1)
            if result is None and not manager.is_running():
                raise RuntimeError(f"its thread ended after {num_done} of {len(asked)} documents")
            if result is not None and result.is_finished():
                if result.error is not None:
                    raise RuntimeError(f"a document failed: {result.error}")
                num_done += 1
                num_tokens += len(result.generated_tokens)
        elapsed_s = time.perf_counter() - started_s
        if num_done < len(asked):  # otherwise it would finish all of them before it stops
            manager.stop(block=True, timeout=10, hard_stop=True)
    if not num_done:
        raise RuntimeError(f"no document was finished in {elapsed_s:.0f} s")
    return _rates(elapsed_s, num_done, num_tokens) | {"of_documents": len(asked)}


def _vllm(model: Model, asked: list[Document]) -> dict[str, float]:
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    engine = LLM(
        model=str(model.directory),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=min(16384, model.config.max_position_embeddings),
        enable_prefix_caching=False,
        gpu_memory_utilization=0.85,
        disable_log_stats=True,
    )
    prompts = [{"prompt_token_ids": prompt} for prompt, _ in asked]
    sampling = [
        SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True, detokenize=False)
        for _, count in asked
    ]
    engine.generate(prompts[:4], sampling[:4], use_tqdm=False)
    started_s = time.perf_counter()
    outputs = engine.generate(prompts, sampling, use_tqdm=False)
    elapsed_s = time.perf_counter() - started_s
    num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    return _rates(elapsed_s, len(outputs), num_tokens) | {"of_documents": len(asked)}


def _rates(elapsed_s: float, num_documents: int, num_tokens: int) -> dict[str, Any]:
    return {
        "seconds": elapsed_s,
        "documents": num_documents,
        "output_tokens_per_s": num_tokens / elapsed_s,
        "documents_per_s": num_documents / elapsed_s,
    }
