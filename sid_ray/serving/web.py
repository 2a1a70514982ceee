"""The HTTP interface of ``sid-ray serve``, and its page."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException as RoutingException

from sid_ray import __version__
from sid_ray.errors import UserError
from sid_ray.serving.answers import (
    AliveAnswer,
    ErrorAnswer,
    HealthAnswer,
    ImagesAnswer,
    ModelsAnswer,
    check_sheet,
    images_answer,
    picture,
    picture_headers,
)
from sid_ray.serving.contract import (
    SEED_MAX,
    BusyError,
    ImagesRequest,
    Limits,
    LostError,
    Painted,
    Painting,
    WantedImage,
)
from sid_ray.serving.guards import LOOPBACK_NAMES, Guards, Receive
from sid_ray.serving.page_files import INDEX, page_files
from sid_ray.serving.problems import Problem, as_found
from sid_ray.serving.reading import (
    JSON,
    PNG,
    answer_media,
    check_content,
    read_request,
    wanted_images,
)

T = TypeVar("T")
PAGE_METHODS = ["GET", "HEAD"]
READY_S = 5.0  # for replicas to be counted
GONE = 499  # nobody reads it: the client went away
ERRORS = {
    400: "The body is no JSON, or the Host header is wrong.",
    401: "The token is missing or another one.",
    403: "A page of another site asked.",
    406: "Neither JSON nor PNG was asked for.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    414: "The address is too long.",
    415: "The Content-Type is not application/json.",
    421: "The Host is not a name of this server.",
    422: "A field is unknown, of a wrong type or out of range.",
    429: "Too much is waiting; Retry-After says when to ask again.",
    431: "The headers are too large.",
    500: "The server failed; its log says how.",
    503: "No replica takes requests, or what made the images ended.",
    504: "The images took too long.",
}
EVERYWHERE = (400, 403, 408, 413, 414, 421, 429, 431, 500, 503)


def web_app(
    painting: Painting,
    limits: Limits | None = None,
    token: str = "",
    hosts: Sequence[str] = LOOPBACK_NAMES,
) -> FastAPI:
    """The application. ``hosts``: names that it is reached by, without ports; '*' is any name."""
    limits = limits or Limits()
    app = FastAPI(
        title="sid-ray serve",
        version=__version__,
        description="Images of generators, one network evaluation each or a few.",
        docs_url=None,  # its scripts come from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(Guards, limits=limits, token=token, hosts=hosts)
    for kind in (Problem, RoutingException, BusyError, LostError, UserError):
        app.add_exception_handler(kind, _told)
    app.include_router(_page())
    app.include_router(_interface(painting, limits, token))
    return app


def problem_of(error: Exception) -> Problem:
    """What a client is told of an error that was foreseen."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, BusyError):
        seconds = max(1, error.retry_after_s)
        return Problem(429, "busy", str(error), headers={"retry-after": str(seconds)})
    if isinstance(error, LostError):
        return Problem(503, "lost", str(error), headers={"retry-after": "1"})
    if isinstance(error, UserError):
        return Problem(422, "refused", str(error))
    assert isinstance(error, RoutingException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        allowed = {name.lower(): value for name, value in headers.items()}.get("allow", "")
        return Problem(405, "wrong_method", f"this address takes {allowed}", headers=headers)
    words = "there is nothing at this address; /openapi.json lists what there is"
    return Problem(error.status_code, "not_found", words, headers=headers)


async def _told(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    return Response(problem.body(), problem.status, problem.headers, media_type=JSON)


def _page() -> APIRouter:
    """The page and its files; /healthz, which says that the process answers."""
    router, files = APIRouter(), page_files()

    @router.api_route("/", methods=PAGE_METHODS, include_in_schema=False)
    async def page(request: Request) -> Response:
        return await page_file(request, INDEX)

    @router.api_route("/page/{name}", methods=PAGE_METHODS, include_in_schema=False)
    async def page_file(request: Request, name: str) -> Response:
        if name not in files:
            raise Problem(404, "not_found", f"the page has no file {as_found(name)}")
        found = files[name]
        if found.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=found.headers)
        return Response(found.content, headers=found.headers)

    @router.api_route("/healthz", methods=PAGE_METHODS, include_in_schema=False)
    async def alive() -> Response:
        return Response(AliveAnswer().json_bytes(), media_type=JSON)

    return router


def _interface(painting: Painting, limits: Limits, token: str) -> APIRouter:
    """``/v1``: what programs ask, and the page."""
    # The dependency is for /openapi.json: Guards compares the token.
    bearer = [Depends(HTTPBearer(auto_error=False))] if token else []
    statuses = (*EVERYWHERE, 401) if token else EVERYWHERE
    router = APIRouter(prefix="/v1", dependencies=bearer, responses=_errors(*statuses))

    @router.get("/models", response_model=ModelsAnswer, summary="The models, and what is taken")
    async def models(request: Request) -> Response:
        answer = ModelsAnswer(models=await painting.models(), limits=limits)
        return Response(answer.json_bytes(), media_type=JSON)

    @router.get("/health", response_model=HealthAnswer, summary="Whether each model is ready")
    async def health(request: Request) -> Response:
        replicas = dict(await painting.ready())
        names = [model.name for model in await painting.models()]
        lacking = [name for name in names if not replicas.get(name)]
        if lacking or not names:
            words = f"no replica takes requests for {', '.join(lacking) or 'any model'}"
            raise Problem(503, "not_ready", words, headers={"retry-after": "2"})
        return Response(HealthAnswer(replicas=replicas).json_bytes(), media_type=JSON)

    @router.post(
        "/images",
        response_model=ImagesAnswer,
        responses={
            200: {"content": {PNG: {"schema": {"type": "string", "format": "binary"}}}},
            **_errors(406, 415, 422, 504),
        },
        openapi_extra={"requestBody": _request_body(limits)},
        summary="Images of seeds",
        description="With `Accept: image/png` the picture itself, or a contact sheet of several "
        "seeds; Sid-Ray-Model, Sid-Ray-Seeds and Server-Timing (in ms) are headers then.",
    )
    async def images(request: Request) -> Response:
        return await answer_images(request, painting, limits)

    return router


async def answer_images(request: Request, painting: Painting, limits: Limits) -> Response:
    """Of ``POST /v1/images``. Raises Problem, BusyError, LostError, UserError."""
    started = time.perf_counter()
    media = answer_media(",".join(request.headers.getlist("accept")))
    check_content(
        request.headers.get("content-type", ""), request.headers.get("content-encoding", "")
    )
    asked = read_request(await request.body())
    model, wanted = wanted_images(asked, await painting.models(), limits)
    if media == PNG:
        check_sheet(len(wanted), model.size)
    painted = await while_connected(
        request.receive, within(limits.answer_s, painting, model.name, wanted)
    )
    if painted is None:
        return Response(status_code=GONE)
    if media == JSON:
        total_s = time.perf_counter() - started
        answer = images_answer(asked, model, wanted, painted, total_s)
        return Response(answer.json_bytes(), media_type=JSON)
    content = await asyncio.to_thread(picture, [made.png for made in painted])
    headers = picture_headers(model, wanted, painted, time.perf_counter() - started)
    return Response(content, headers=headers, media_type=PNG)


async def while_connected(receive: Receive, work: Awaitable[T]) -> T | None:
    """What ``work`` returns; None, and it is cancelled, where the client goes away."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def within(
    seconds: float, painting: Painting, model: str, wanted: Sequence[WantedImage]
) -> Sequence[Painted]:
    """What is painted. Raises LostError or Problem where it takes longer."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await painting.paint(model, wanted)
    except TimeoutError:
        if not limit.expired():
            raise
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READY_S):
            if not (await painting.ready()).get(model):
                raise LostError(f"within {seconds:g} s no replica of {model} took requests")
    what = "the image was" if len(wanted) == 1 else "the images were"
    advice = "ask again later" if len(wanted) == 1 else "ask for fewer"
    raise Problem(504, "too_slow", f"{what} not made within {seconds:g} s; {advice}")


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorAnswer, "description": ERRORS[status]} for status in statuses}


def _request_body(limits: Limits) -> dict[str, Any]:
    """For /openapi.json: with the limits of this server, which pydantic does not know."""
    schema = ImagesRequest.model_json_schema(by_alias=True)
    fields = schema["properties"]
    fields["seeds"] |= {"maxItems": limits.images}
    fields["seeds"]["items"] |= {"minimum": 0, "maximum": SEED_MAX}
    text = next(each for each in fields["prompt"]["anyOf"] if each["type"] == "string")
    text["maxLength"] = limits.prompt_chars
    example = {"seeds": [0, 1, 2, 3], "network": "generator"}
    return {"required": True, "content": {JSON: {"schema": schema, "example": example}}}
