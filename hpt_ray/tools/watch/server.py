"""The page and what it asks for, as a web application that only reads.

Every address begins with a random token, which only who started the server knows; without it everything is "Not
Found". A browser that was led here under another name (DNS rebinding) is refused by its Host header. The content
policy lets the page run its own scripts and nothing else, so a text of a model stays text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import pyarrow as pa
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hpt_ray.tools.watch.answers import ANSWERS, PAGE, Answer
from hpt_ray.tools.watch.reader import Runs

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the token is in the address
    "X-Content-Type-Options": "nosniff",
}


def application(runs: Runs, token: str) -> Starlette:
    """Serves `runs` below `/TOKEN/`."""

    def route(path: str, answer: Answer) -> Route:
        def endpoint(request: Request) -> Response:  # in a thread: reading takes time
            return _answer(answer, runs, request.query_params)

        return Route(f"/api/{path}", endpoint)

    routes = [route(path, answer) for path, answer in ANSWERS.items()]
    page = Mount("/", StaticFiles(directory=PAGE, html=True))
    return Starlette(
        routes=[Mount(f"/{token}", routes=[*routes, page])],
        middleware=[
            Middleware(_with_headers),
            Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"], www_redirect=False),
            Middleware(GZipMiddleware, minimum_size=2000, compresslevel=1),
        ],
    )


def _with_headers(app: ASGIApp) -> ASGIApp:
    """Adds `HEADERS` to every response."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await app(scope, receive, sent)

    return answer


def _answer(answer: Answer, runs: Runs, asked: Mapping[str, str]) -> Response:
    """What was asked for as JSON; what is wrong with the question or a file as a text."""
    try:
        content = answer(runs, asked)
    except KeyError as missing:
        return Response(f"there is no {missing.args[0]}", 404, media_type="text/plain")
    except ValueError as error:
        return Response(str(error), 400, media_type="text/plain")
    except (OSError, pa.ArrowException) as error:
        return Response(f"a file of the run cannot be read: {error}", 500, media_type="text/plain")
    return Response(
        json.dumps(content, allow_nan=False, separators=(",", ":")), media_type="application/json"
    )
