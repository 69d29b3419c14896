"""`/v1/batches/{id}/events`: the log of a job."""

from __future__ import annotations

from fastapi import APIRouter, Request
from sqlalchemy import Connection
from starlette.responses import Response

from bros_batch.db.job_events import list_events
from bros_batch.db.jobs import get_job
from bros_batch.db.table_rows import JobEvent
from bros_batch.web.app_state import app_state
from bros_batch.web.errors import JSONResponse, not_found
from bros_batch.web.job_log import log_sentence
from bros_batch.web.owners import visible_owner

router = APIRouter(prefix="/v1/batches")


@router.get("/{batch_id}/events")
async def list_batch_events(request: Request, batch_id: str) -> Response:
    """Return what happened to a job, oldest first: its latest 200 events, with a sentence about each."""
    seen = visible_owner(request)

    def query(connection: Connection) -> list[JobEvent]:
        if get_job(connection, batch_id, seen) is None:
            raise not_found("batch", batch_id, "batch_id")
        return list_events(connection, batch_id)

    found = await app_state(request).read(query)
    events = [
        {"object": "batch.event", "at": each.at, "kind": each.kind, "text": log_sentence(each), **each.detail}
        for each in found
    ]
    return JSONResponse({"object": "list", "data": events})
