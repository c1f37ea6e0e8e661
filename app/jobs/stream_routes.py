"""Streams of a job: server-sent events, and a WebSocket that can also cancel the job."""

from contextlib import ExitStack

from fastapi import APIRouter, Request, Response
from starlette.websockets import WebSocket

from app.auth.requires import authenticate, key_recheck, requires
from app.auth.route import AuthenticatedRoute
from app.http.asgi import WEBSOCKET_PREFIX
from app.http.openapi import refusals
from app.jobs.openapi import JOB_EVENTS, JobId
from app.jobs.service import NO_SUCH_JOB
from app.services import services_of
from app.streams.events import EventSequence, event_id
from app.streams.openapi import STREAM_REFUSALS, stream_of
from app.streams.registry import StreamSource
from app.streams.sse import EventStream, LastEventId, open_stream
from app.streams.websocket import JobSocket, check_origin, socket_requires
from core import errors
from core.domain.jobs import Job
from core.domain.principals import Principal, Scope
from core.http.request_route import SocketRoute

SOCKET_PATH = WEBSOCKET_PREFIX + "jobs/{job_id}"

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"], route_class=AuthenticatedRoute)


@router.get(
    "/{job_id}/stream",
    summary="Stream the changes of a job",
    description="Sends the current state of the job, then each change. The stream ends with "
    "`complete`, `failed` or `cancelled`.\n\n"
    f'The WebSocket `{SOCKET_PATH}` sends the same events as messages `{{"id", "event", "data"}}` '
    "and accepts `last_event_id`, too. The message "
    '`{"action": "cancel"}` cancels the job. The server closes with 1000 after the last event, '
    "with 1012 if the client should reconnect, and with 4000 plus an HTTP status for an error: "
    "4401, 4403, 4404, 4429, 4503.",
    status_code=200,  # FastAPI finds no default in `EventStream`
    response_class=EventStream,
    responses={
        **stream_of("job", *JOB_EVENTS),
        **refusals(errors.NotFound, errors.Forbidden, errors.InvalidRequest),
        **STREAM_REFUSALS,
    },
)
@requires(Scope.JOBS)
async def stream_job(
    request: Request, principal: Principal, job_id: JobId, last_event_id: LastEventId
) -> Response:
    services = services_of(request)
    job = await services.jobs.find(principal, job_id)
    source = StreamSource(services.streams, services.job_poller, job.key, NO_SUCH_JOB)
    return await open_stream(source, key_recheck(request, Scope.JOBS, principal), last_event_id)


@socket_requires(Scope.JOBS)
async def follow(websocket: WebSocket, principal: Principal) -> None:
    services = services_of(websocket)
    check_origin(websocket, services.settings.origins)
    job = await services.jobs.find(principal, websocket.path_params["job_id"])

    async def cancel() -> Job:
        # As for DELETE: the key is checked again, and the request is counted.
        return await services.jobs.cancel(await authenticate(websocket, Scope.JOBS), job.key.id)

    with ExitStack() as stack:
        recheck = key_recheck(websocket, Scope.JOBS, principal)
        stack.enter_context(services.streams.reserve("websocket", recheck.key_id))
        subscription = stack.enter_context(services.job_poller.subscribe(job.key))
        after = event_id(websocket.query_params.get("last_event_id"))
        events = EventSequence(subscription, recheck, after)
        await events.open(NO_SUCH_JOB)  # if the client has the last event, the socket closes
        await websocket.accept()
        socket = JobSocket(websocket, events, subscription, cancel)
        with services.streams.track(socket):
            await socket.run()


router.routes.append(
    SocketRoute(SOCKET_PATH, follow, name="follow", query=("last_event_id", "ticket"))
)
