"""The error for a request that cannot be served: over HTTP or as one item of a job."""

from __future__ import annotations


class RequestError(ValueError):
    """A request that cannot be served as it stands.

    `message` is one sentence for the client, `param` names the field at fault, and `code` is the OpenAI error code.
    """

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
