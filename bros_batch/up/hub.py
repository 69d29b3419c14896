"""Looks for a model on the Hugging Face Hub before the services start, which would find out late and one by one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from bros_batch.up.preflight import StartupError

HUB_TIMEOUT_S = 10.0
_FILES = ("config.json", "tokenizer.json")
_ADVICE = "or set --model to a model directory or another name"


def check_on_hub(model: str, say: Callable[[str], None], *, needs_weights: bool = True) -> None:
    """Check that a model is in the local cache or on the Hub. Raises StartupError, after HUB_TIMEOUT_S at the latest.

    `say` gets a sentence before the network is used.
    """
    if _is_cached(model, needs_weights):
        return
    say(f"looking for {model} on the Hugging Face Hub")
    answer: list[set[str] | Exception] = []
    # On a thread, because the lookup of a host name has no time limit of its own.
    asking = threading.Thread(target=lambda: answer.append(_files_of(model)), daemon=True)
    asking.start()
    asking.join(HUB_TIMEOUT_S)
    found = answer[0] if answer else TimeoutError()
    if isinstance(found, Exception):
        raise StartupError(_explain(model, found)) from None
    missing = [name for name in _FILES if name not in found]
    if needs_weights and not any(name.endswith(".safetensors") for name in found):
        missing.append("*.safetensors")
    if missing:
        raise StartupError(
            f"The model {model} on the Hugging Face Hub lacks {', '.join(missing)}; set --model to another one."
        )


def _is_cached(model: str, needs_weights: bool) -> bool:
    from huggingface_hub import try_to_load_from_cache

    paths = [try_to_load_from_cache(model, name) for name in _FILES]
    if not all(isinstance(path, str) for path in paths):
        return False
    return not needs_weights or any(Path(str(paths[0])).parent.glob("*.safetensors"))


def _files_of(model: str) -> set[str] | Exception:
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(model, timeout=HUB_TIMEOUT_S)
    except Exception as error:
        return error
    return {sibling.rfilename for sibling in info.siblings or ()}


def _explain(model: str, error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    match error:
        case GatedRepoError():
            return f"The model {model} is gated; accept its terms on its page and set HF_TOKEN, {_ADVICE}."
        case RepositoryNotFoundError():
            return f"There is no model {model} on the Hugging Face Hub; if it is private, set HF_TOKEN, {_ADVICE}."
        case HFValidationError():
            return f"{model} is not a name on the Hugging Face Hub; set --model to a model directory or a valid name."
        case TimeoutError():
            reason = f"has not answered for {HUB_TIMEOUT_S:g} s"
        case _:
            reason = "cannot be reached"
    return (
        f"The Hugging Face Hub {reason}, and {model} is not in the cache of this machine; check the connection, "
        f"{_ADVICE}."
    )
