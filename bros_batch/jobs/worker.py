"""What every job task works with: the settings, the database, Redis and the model's tokenizer."""

from __future__ import annotations

import contextlib
import gc
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from redis import Redis
from sqlalchemy import Engine

from bros_batch.db.connections import get_database
from bros_batch.jobs.redis_connection import get_redis
from bros_batch.openai_api.endpoint import ServedModel, embedding_form
from bros_batch.openai_api.sampling_defaults import sampling_defaults
from bros_batch.settings import Settings, get_settings
from bros_batch.text.tokenizer import ModelTokenizer, load_tokenizer
from engine.wire.limits import ModelLimits


@dataclass(frozen=True, slots=True)
class Worker:
    """The context of a task."""

    settings: Settings
    database: Engine
    redis: Redis

    @property
    def tokenizer(self) -> ModelTokenizer:
        """The tokenizer of the served model, loaded on first use and kept for the life of the process."""
        settings = self.settings
        return load_tokenizer(settings.model, settings.tool_call_parser, settings.reasoning_parser)

    @property
    def model(self) -> ServedModel:
        """The served model, with its limits as far as they are known without asking an engine."""
        tokenizer = self.tokenizer
        max_model_len = self.settings.max_model_len or tokenizer.max_model_len
        limits = ModelLimits(min(tokenizer.max_model_len, max_model_len), tokenizer.vocab_size)
        defaults = sampling_defaults(self.settings, tokenizer.recommended_sampling)
        return ServedModel(tokenizer, limits, defaults, embedding_form(self.settings, tokenizer))


@cache
def get_worker() -> Worker:
    """The context of this process's tasks. Nothing connects before it is used, so a process may fork with it."""
    return Worker(get_settings(), get_database(), get_redis())


def load_before_fork() -> None:
    """Load once what the processes of a worker would each load by themselves, and they share its memory.

    What fails here fails again in the first task, which says so. A model on the Hugging Face Hub is left to the tasks,
    because its client has threads.
    """
    with contextlib.suppress(Exception):
        worker = get_worker()
        if Path(worker.settings.model).expanduser().is_dir():
            _ = worker.model
    gc.collect()
    gc.freeze()  # the collector would write to all of it, and each process get its own copy
