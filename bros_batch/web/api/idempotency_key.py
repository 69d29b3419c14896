"""The `Idempotency-Key` header: a request that is sent again with the same key has no further effect."""

from __future__ import annotations

import hashlib

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from bros_batch.db import idempotency, jobs
from bros_batch.db.table_rows import IdempotencyKey, Job
from bros_batch.request_error import RequestError
from bros_batch.web.api.batch_object import batch_object
from bros_batch.web.errors import ApiError, JSONResponse

MAX_KEY_CHARS = 255


def idempotency_key(request: Request) -> str | None:
    """Return the id of the request's key, or None if it has none. Keys of different API keys never meet."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= MAX_KEY_CHARS:
        message = f"Invalid 'Idempotency-Key': it must have 1 to {MAX_KEY_CHARS} characters."
        raise RequestError(message, "Idempotency-Key")
    return idempotency.key_id(request.headers.get("authorization", ""), key)


def digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def earlier_job(connection: Connection, claimed: IdempotencyKey) -> Job | None:
    """Return the job that an earlier request with the same key created; None if `claimed` is the first.

    Raises ApiError 422 if the earlier request had a different body.
    """
    earlier = idempotency.find_key(connection, claimed.id, claimed.created_at)
    if earlier is None or earlier.job_id == claimed.job_id:
        return None
    if earlier.fingerprint != claimed.fingerprint:
        message = (
            "This 'Idempotency-Key' was used within the last 24 hours for a request with a different body. "
            "Send a new key with each new request."
        )
        raise ApiError(422, message, param="Idempotency-Key", code="idempotency_key_reused")
    return jobs.get_job(connection, earlier.job_id)


def replayed(job: Job) -> Response:
    """Return the response to a repeated request: the job as it is now."""
    return JSONResponse(batch_object(job), headers={"Idempotent-Replayed": "true"})
