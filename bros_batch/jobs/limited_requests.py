"""How the items of a job become requests, with a limit on the time that it takes to read the job's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bros_batch.documents.item_requests import JobRequests, try_job_requests
from bros_batch.jobs.cpu_limit import LINE_CPU_LIMIT_S, CpuLimitExceeded, cpu_limit
from bros_batch.request_error import RequestError


def limited_job_requests(
    path: str, model: str, form: str | None, defaults: Mapping[str, Any]
) -> JobRequests | RequestError:
    """As `try_job_requests`, but defaults that take too much CPU time are an error of each item as well."""
    try:
        with cpu_limit(LINE_CPU_LIMIT_S):
            return try_job_requests(path, model, form, defaults)
    except CpuLimitExceeded:
        return RequestError(
            f"The job's defaults take more than {LINE_CPU_LIMIT_S:g} s of CPU time to read.", "defaults"
        )
