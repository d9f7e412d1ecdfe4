"""The page and what it asks for, as a web application that only reads.

Every address begins with a random token, which only who started the server knows; without it everything is "Not
Found". A browser that was led here under another name (DNS rebinding) is refused by its Host header. The content
policy lets the page run its own scripts and nothing else, so a text of a model stays text.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from hpt_ray.observe.metrics import METRICS
from hpt_ray.tools.watch import rollouts
from hpt_ray.tools.watch.gate import gate_map
from hpt_ray.tools.watch.reader import Runs, curves
from hpt_ray.tools.watch.timeline import timeline

PAGE = Path(__file__).parent / "page"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the token is in the address
    "X-Content-Type-Options": "nosniff",
}
Answer = Callable[[Runs, Mapping[str, str]], Any]


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
            Middleware(BaseHTTPMiddleware, dispatch=_with_headers),
            Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"], www_redirect=False),
            Middleware(GZipMiddleware, minimum_size=2000, compresslevel=1),
        ],
    )


async def _with_headers(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await go_on(request)
    response.headers.update(HEADERS)
    return response


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


# -- what can be asked for ---------------------------------------------------------------------------


def _runs(runs: Runs, asked: Mapping[str, str]) -> Any:
    return [{"id": name, **run.facts()} for name, run in runs.all().items()]


def _metrics(runs: Runs, asked: Mapping[str, str]) -> Any:
    return [{"name": metric.name, "unit": metric.unit, "meaning": metric.meaning} for metric in METRICS]


def _curves(runs: Runs, asked: Mapping[str, str]) -> Any:
    grid = {name: _count(asked[name]) for name in ("width", "count", "smooth")}
    return curves(runs[asked["run"]], asked["metrics"].split(","), first=int(asked["first"]), **grid)


def _config(runs: Runs, asked: Mapping[str, str]) -> Any:
    return runs[asked["run"]].config


def _gate(runs: Runs, asked: Mapping[str, str]) -> Any:
    rows, columns = (_span(asked.get(name, "")) for name in ("rows", "columns"))
    order, find, by_attempt = (
        asked.get("order", "solved"),
        asked.get("find", ""),
        asked.get("by") == "attempt",
    )
    history = runs[asked["run"]].history.table()
    return gate_map(history, order=order, by_attempt=by_attempt, find=find, rows=rows, columns=columns)


def _rollouts(runs: Runs, asked: Mapping[str, str]) -> Any:
    after = _span(asked["after"]) if asked.get("after") else None
    return rollouts.search(runs[asked["run"]].folder, rollouts.Wanted.of(asked), after)


def _choices(runs: Runs, asked: Mapping[str, str]) -> Any:
    return rollouts.choices(runs[asked["run"]].folder, rollouts.kind_of(asked))


def _group(runs: Runs, asked: Mapping[str, str]) -> Any:
    folder, step, kind = runs[asked["run"]].folder, int(asked["step"]), rollouts.kind_of(asked)
    by_prompt = "prompt" in asked
    number = rollouts.find_group(folder, step, asked["prompt"], kind) if by_prompt else int(asked["group"])
    return rollouts.group(folder, step, number, kind)


def _tokens(runs: Runs, asked: Mapping[str, str]) -> Any:
    run = runs[asked["run"]]
    place = int(asked["step"]), int(asked["row"])
    return rollouts.tokens(run.folder, *place, run.tokenizer_files(), rollouts.kind_of(asked))


def _timeline(runs: Runs, asked: Mapping[str, str]) -> Any:
    return timeline(runs[asked["run"]].folder.trace, int(asked["step"]))


def _span(text: str) -> tuple[int, int]:
    """Example: `"3,10"`; empty is everything."""
    first, _, last = (text or "0,1000000000").partition(",")
    return int(first), int(last)


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 10**6:
        raise ValueError(f"{number} is not between 1 and 1,000,000")
    return number


ANSWERS: dict[str, Answer] = {
    "runs": _runs,
    "metrics": _metrics,
    "curves": _curves,
    "config": _config,
    "gate": _gate,
    "rollouts": _rollouts,
    "choices": _choices,
    "group": _group,
    "tokens": _tokens,
    "timeline": _timeline,
}
