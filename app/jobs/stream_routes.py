"""A job's changes as they come: server-sent events, and a WebSocket that can also cancel."""

from contextlib import ExitStack

from fastapi import APIRouter, Request, Response
from starlette.websockets import WebSocket

from app.auth.requires import authenticate, key_recheck, requires
from app.http.asgi import PATHS
from app.http.openapi import refusals
from app.jobs.openapi import JOB_ID_PARAMETER
from app.jobs.service import NO_SUCH_JOB
from app.services import services_of
from app.streams.events import EventSequence, event_id
from app.streams.openapi import STREAM_PARAMETERS, STREAM_REFUSALS, stream_of
from app.streams.registry import StreamSource
from app.streams.sse import EventStream, open_stream
from app.streams.websocket import JobSocket, check_origin, socket_requires
from core import errors
from core.domain.jobs import Job
from core.domain.principals import Principal, Scope
from core.http.request_route import RequestRoute, SocketRoute

SOCKET_PATH = PATHS.decode() + "jobs/{job_id}"

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"], route_class=RequestRoute)


@router.get(
    "/{job_id}/stream",
    summary="A job's changes, as they come",
    description="Server-sent events: first the job as it is, then each change of it, at the end "
    "`complete`, or `error` where it failed or was cancelled. Then the stream is closed.\n\n"
    f'`WS {SOCKET_PATH}` has the same events as messages `{{"id", "event", "data"}}`, takes '
    '`last_event_id` as well, and cancels the job on the message `{"action": "cancel"}`. It is '
    "closed with 1000 after the last event, with 1012 where you are to come again, and with 4000 "
    "plus a status where HTTP would answer with that: 4401, 4403, 4404, 4429, 4503.",
    status_code=200,
    response_class=EventStream,
    responses={
        **stream_of("job"),
        **refusals(errors.NotFound, errors.Forbidden),
        **STREAM_REFUSALS,
    },
    openapi_extra={"parameters": [JOB_ID_PARAMETER, *STREAM_PARAMETERS]},
)
@requires(Scope.JOBS)
async def stream(request: Request, principal: Principal) -> Response:
    services = services_of(request)
    job = await services.jobs.find(principal, request.path_params["job_id"])
    source = StreamSource(services.streams, services.job_poller, job.key, NO_SUCH_JOB)
    return await open_stream(request, source, key_recheck(request, Scope.JOBS))


@socket_requires(Scope.JOBS)
async def follow(websocket: WebSocket, principal: Principal) -> None:
    services = services_of(websocket)
    check_origin(websocket, services.settings.cors_origins)
    job = await services.jobs.find(principal, websocket.path_params["job_id"])

    async def cancel() -> Job:
        # As for DELETE: the key is checked again, and the request is counted.
        return await services.jobs.cancel(await authenticate(websocket, Scope.JOBS), job.key.id)

    with ExitStack() as stack:
        stack.enter_context(services.streams.reserve("websocket"))
        subscription = stack.enter_context(services.job_poller.subscribe(job.key))
        after = event_id(websocket.query_params.get("last_event_id"))
        events = EventSequence(subscription, key_recheck(websocket, Scope.JOBS), after)
        await events.open(NO_SUCH_JOB)  # if the client has the last event, the socket closes
        await websocket.accept()
        socket = JobSocket(websocket, events, subscription, cancel)
        with services.streams.track(socket):
            await socket.run()


router.routes.append(SocketRoute(SOCKET_PATH, follow, name="follow"))
