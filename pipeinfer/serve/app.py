"""The endpoint as an ASGI application."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipeinfer.serve.guard import Guard
from pipeinfer.serve.handlers import GONE, Handlers
from pipeinfer.serve.refusal import Refusal


def application(handlers: Handlers, *, key: str | None) -> Starlette:
    """Routes of an endpoint behind the guard. Whatever goes wrong is told in OpenAI's shape."""
    routes = [
        Route("/", handlers.page, methods=["GET"]),
        Route("/health", handlers.health, methods=["GET"]),
        Route("/metrics", handlers.metrics, methods=["GET"]),
        Route("/pipe", handlers.pipe, methods=["GET"]),
        Route("/v1/models", handlers.models, methods=["GET"]),
        Route("/v1/completions", handlers.completions, methods=["POST"]),
        Route("/v1/chat/completions", handlers.chat, methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, key=key)],
        exception_handlers={Refusal: _refused, HTTPException: _no_route, ClientDisconnect: _gone, Exception: _broken},
    )


async def _refused(_: Request, problem: Exception) -> Response:
    assert isinstance(problem, Refusal)
    return JSONResponse(problem.body, problem.status, problem.headers)


async def _no_route(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    said = f"{request.method} {request.url.path}: {problem.detail.lower()}"
    refusal = Refusal(problem.status_code, said, headers=dict(problem.headers or {}))
    return await _refused(request, refusal)


async def _gone(_request: Request, _problem: Exception) -> Response:
    return Response(status_code=GONE)


async def _broken(request: Request, _problem: Exception) -> Response:
    return await _refused(request, Refusal(500, "the server has a fault; its log says which"))
