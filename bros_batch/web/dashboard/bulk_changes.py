"""A change of many jobs: those that a person has selected, or all that match a search and a status."""

from __future__ import annotations

from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from bros_batch.db.allowed_changes import Change
from bros_batch.db.job_list import JobFilter, next_job_ids
from bros_batch.web.app_state import app_state
from bros_batch.web.change_job import change_job
from bros_batch.web.errors import ApiError, JSONResponse
from bros_batch.web.owners import visible_owner

# One request changes so many; the page asks again for the others, and shows how far it is.
MAX_JOBS = 25

Text = Annotated[str, msgspec.Meta(max_length=200)]


class BulkChange(msgspec.Struct):
    """Body of `POST /jobs`: `jobs` by id, or else those after the id `after` that match the search and the status."""

    change: Change
    jobs: Annotated[list[Text], msgspec.Meta(max_length=MAX_JOBS)] | None = None
    search: Text = ""
    status: Text = ""
    after: Text = ""


async def change_jobs(request: Request) -> Response:
    """Change jobs one by one, and say how many changed, why others did not, and after which id to continue."""
    state = app_state(request)
    body = await state.parsed(request, _decode)
    ids = body.jobs
    if ids is None:
        which = JobFilter(body.search, body.status, visible_owner(request))
        ids = await state.read(lambda connection: next_job_ids(connection, which, body.after, MAX_JOBS))
    refused = []
    for job_id in ids:
        try:
            await change_job(request, job_id, body.change)
        except ApiError as error:
            if error.status >= 500:
                raise
            refused.append({"id": job_id, "message": error.message})
    more = ids[-1] if body.jobs is None and len(ids) == MAX_JOBS else None
    return JSONResponse({"changed": len(ids) - len(refused), "refused": refused, "after": more})


def _decode(raw: bytes) -> BulkChange:
    try:
        return msgspec.json.decode(raw, type=BulkChange)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"Not a change of jobs: {error}.", code="invalid_request") from None
