"""The names under which clients may ask for the served model."""

from __future__ import annotations

from dataclasses import dataclass

from bros_batch.request_error import RequestError

MAX_SHOWN_CHARS = 80


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The name of the served model, and its aliases: other names that clients may send instead.

    Responses always carry `served`, whichever name the request had, as those of vLLM do.
    """

    served: str
    aliases: tuple[str, ...] = ()

    def resolve(self, name: str, param: str = "model", *, in_file: bool = False) -> str:
        """Return the served model for `name`. Raises RequestError `model_not_found`, which says what is served and how
        requests for another name can be served. `in_file`: a line of a batch file has the name."""
        if name == self.served or name in self.aliases:
            return self.served
        shown = name if len(name) <= MAX_SHOWN_CHARS else f"{name[:MAX_SHOWN_CHARS]}..."
        also = f" (also as {', '.join(self.aliases)})" if self.aliases else ""
        batch = f" (`bros-batch submit --model {self.served}` writes it into every line)" if in_file else ""
        raise RequestError(
            f"The model '{shown}' is not served here. The served model is '{self.served}'{also}: send that name"
            f"{batch}, or start the server with --model-alias '{shown}={self.served}'.",
            param,
            "model_not_found",
        )
