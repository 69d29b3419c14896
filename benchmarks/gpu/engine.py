"""The parts of a run that need an engine: their order, models and settings."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.idle import idle_share
from benchmarks.gpu.models import Model, free_memory, load_runner, make_model, running
from benchmarks.gpu.other_engines import measure_others, measure_own
from benchmarks.gpu.report import Part, Run
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.serving import Engine, figures, window_s
from benchmarks.gpu.steps import agreement, measure_profile, measure_steps
from engine.core.terms import Policy
from engine.profiling import first_cost_model

AS_SERVED = "as served"


class EngineBench:
    """Runs the parts that need an engine. The first model is served; `directory` receives the configurations."""

    def __init__(
        self,
        run: Run,
        models: list[str],
        directory: Path,
        device: torch.device,
        scale: Scale,
        ceilings: Ceilings,
        quantization: str,
    ) -> None:
        self._run = run
        self._models = [make_model(name, directory, scale) for name in models]
        self._device = device
        self._scale = scale
        self._ceilings = ceilings
        self._quantization = quantization  # of weights, where a measurement does not choose it
        self.served_parts: dict[str, Callable[[Part, Engine], None]] = {
            "steps": self._measure_steps,
            "alone": self._measure_alone,
            "hybrid": self._measure_hybrid,
        }

    def measure_served(self, names: list[str]) -> None:
        """Measure the parts that need the served model, which is loaded once.

        If it cannot be loaded with CUDA graphs, it is loaded without them, so that most parts can still be measured.
        """
        part, model = self._run.part(names[0]), self._models[0]
        engine = self._load(part, model)
        if engine is None and self._device.type == "cuda":
            free_memory()
            engine = self._load(part, model, enforce_eager=True)
        if engine is None:
            return
        for name in names:
            part = self._run.part(name)
            try:
                self.served_parts[name](part, engine)
            except Exception as error:
                part.fail(name, error)
            part.save()
        engine.runner.close()

    def measure_others(self, part: Part) -> None:
        """Measure other engines on the same documents."""
        measure_others(part, self._models[0], self._device, self._scale)

    def measure_more(self, part: Part) -> None:
        """What is not served: float8 weights or KV, other models, no graphs."""
        first, *others = self._models
        variants: list[tuple[Model, str, dict[str, Any]]] = [(model, AS_SERVED, {}) for model in others]
        if self._device.type == "cuda":
            variants.insert(0, (first, "with fp8 KV", {"kv_cache_dtype": "fp8_e4m3"}))
            if self._quantization == "none":
                variants.insert(0, (first, "with fp8 weights", {"quantization": "fp8"}))
        variants.append((first, "eager", {"enforce_eager": True}))
        for model, name, changed in variants:
            settings = {"quantization": self._quantization} | changed
            title = f"{model.name} {name}"
            if part.left_s <= 0:
                part.skipped.append(title)
                continue
            kv_itemsize = 1 if "kv_cache_dtype" in settings else None
            try:
                with running(model, self._device, self._scale, **settings) as runner:
                    measure_steps(part, title, model, runner, self._scale, self._ceilings, kv_itemsize)
            except Exception as error:
                part.fail(title, error)
            free_memory()

    def _load(self, part: Part, model: Model, **settings: Any) -> Engine | None:
        """Load a model; None, with the failure recorded, if that is impossible."""
        name = f"{model.name} {settings or AS_SERVED}, load"
        scale = self._scale
        settings = {"quantization": self._quantization} | settings
        try:
            started_s = time.perf_counter()
            runner = load_runner(model, self._device, scale, **settings)
            loaded_s = time.perf_counter() - started_s
            cost_model = first_cost_model(
                str(model.directory), runner, scale.max_num_batched_tokens, scale.profile_s, time.perf_counter
            )
        except Exception as error:
            part.fail(name, error)
            return None
        part.figures[name] = {"seconds": loaded_s, **dataclasses.asdict(runner.info)}
        return Engine(runner, cost_model, scale)

    def _measure_steps(self, part: Part, engine: Engine) -> None:
        model, title = self._models[0], f"{self._models[0].name} {AS_SERVED}"
        measure_steps(part, title, model, engine.runner, self._scale, self._ceilings)
        measure_profile(part, title, engine.runner, self._scale)
        part.measure("tokens that graphs draw as eager steps do", lambda: self._compare_graphs(part, engine))
        for ahead in (True, False):  # first as served
            for num_rows in self._scale.idle_rows:
                part.measure(
                    f"idle at {num_rows} rows, {'asynchronous' if ahead else 'synchronous'}",
                    lambda n=num_rows, a=ahead: idle_share(engine, n, ahead=a),  # type: ignore[misc]
                )

    def _compare_graphs(self, part: Part, engine: Engine) -> dict[str, float]:
        """Check that steps sample the same tokens with and without graphs, except for rounding."""
        agreed = agreement(engine.runner, self._scale)
        if agreed["share"] < agreed["at_least"]:
            part.mismatches.append("graphs draw other tokens than eager steps")
        return agreed

    def _measure_alone(self, part: Part, engine: Engine) -> None:
        scale = self._scale
        seconds = self._serve_s(part, 3)
        for name, chats, documents in (
            ("documents alone", None, scale.documents),
            ("chats alone", scale.chats, None),
        ):
            part.measure(
                name,
                lambda c=chats, d=documents: figures(engine.serve(Policy.BROS, c, d, seconds=seconds)),  # type: ignore[misc]
            )
        measure_own(part, engine, scale)

    def _measure_hybrid(self, part: Part, engine: Engine) -> None:
        """Serve the same chats and documents with every policy.

        Scarce memory is a quarter of what the documents need. The "bros" policy runs first, and long enough for its
        target to be judged.
        """
        scale = self._scale
        memories = {"ample": None, "scarce": max(engine.needed_blocks // 4, engine.least_blocks)}
        num_policies = 3
        brief_s = self._serve_s(part, num_policies * len(memories))
        judged_s = max(brief_s, window_s(scale.num_chats / scale.chats_per_s))
        runs = [(Policy.BROS, memory) for memory in memories]
        runs += [(policy, memory) for memory in memories for policy in (Policy.FCFS, Policy.PRIORITY)]
        for policy, memory in runs:
            seconds = judged_s if policy is Policy.BROS else brief_s
            part.measure(
                f"{policy.value}, {memory} memory",
                lambda p=policy, m=memory, s=seconds: figures(  # type: ignore[misc]
                    engine.serve(p, scale.chats, scale.documents, seconds=s, num_blocks=memories[m])
                ),
                needs_s=seconds / 2,
            )

    def _serve_s(self, part: Part, num_runs: int) -> float:
        """Return the duration of a serving run if the remaining time is divided among `num_runs`."""
        least_s, most_s = self._scale.serve_s
        return max(least_s, min(most_s, part.left_s / num_runs))
