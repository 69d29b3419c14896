"""The job system: documents, jobs, results, and the API and dashboard to them. It never touches a tensor.

For Python, this package has `map` and `ask`, which put a table through a prompt and return it with more columns, and
`Client`, which has these for any server, and jobs and chat. Nothing of that is imported before it is used, so that the
services do not pay for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bros_batch.client.bad_input import BadInput as BadInput
    from bros_batch.client.http_client import ServiceError as ServiceError
    from bros_batch.client.http_client import ServiceUnreachable as ServiceUnreachable
    from bros_batch.python.answers import InvalidAnswer as InvalidAnswer
    from bros_batch.python.answers import RowsFailed as RowsFailed
    from bros_batch.python.client import Client as Client
    from bros_batch.python.functions import ask as ask
    from bros_batch.python.functions import map as map
    from bros_batch.python.functions import map_async as map_async
    from bros_batch.python.job import Job as Job
    from bros_batch.python.job import JobFailed as JobFailed

_MODULES = {
    "BadInput": "bros_batch.client.bad_input",
    "Client": "bros_batch.python.client",
    "InvalidAnswer": "bros_batch.python.answers",
    "Job": "bros_batch.python.job",
    "JobFailed": "bros_batch.python.job",
    "RowsFailed": "bros_batch.python.answers",
    "ServiceError": "bros_batch.client.http_client",
    "ServiceUnreachable": "bros_batch.client.http_client",
    "ask": "bros_batch.python.functions",
    "map": "bros_batch.python.functions",
    "map_async": "bros_batch.python.functions",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
