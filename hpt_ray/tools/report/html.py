"""HTML from parts: sections, figures with the picture embedded, tables, and the page around them.

A page is one file: pictures are data URIs, the style is in it, there is no script, and nothing is fetched
when it is opened. The markup is in templates/; whatever is put into it is text and is escaped there, but for what
is marked `Html`. Nothing here knows what is shown.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

PIXELS_PER_INCH = 192  # two pixels of the file on one of the page, for sharp letters on dense screens

# Control characters and lone surrogates, which no HTML file may hold, and what turns the reading direction.
_NOT_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


class Html(str):
    """Text that is HTML already and is not to be escaped. Example: `Html("<b>0.5</b>")`."""

    __slots__ = ()

    def __html__(self) -> str:
        return self


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a page: `title` is text, `html` is HTML."""

    title: str
    html: str

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


def escape(text: object) -> Html:
    """`text` as HTML, whatever it holds: markup, quotes, control characters, half of a surrogate pair."""
    if hasattr(text, "__html__"):
        return Html(text)
    return Html(html.escape(_NOT_TEXT.sub("\N{REPLACEMENT CHARACTER}", str(text))))


_TEMPLATES = Environment(
    loader=PackageLoader("hpt_ray.tools.report"),
    autoescape=True,
    finalize=escape,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PARTS = _TEMPLATES.get_template("parts.html").module


def part(name: str, *arguments: object, **named: object) -> Html:
    """What a macro of templates/parts.html makes of its arguments."""
    return Html(getattr(_PARTS, name)(*arguments, **named))


def png_of(figure: Figure) -> bytes:
    """The picture as it is embedded and as it is written to a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PIXELS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def figure_html(figure: Figure, alt: str, caption: str = "", *, png: bytes | None = None) -> Html:
    """A `<figure>` with the picture in it. `alt` says in words what is seen; `caption` stands below."""
    width, height = (round(float(inches) * 96) for inches in figure.get_size_inches())
    data = base64.b64encode(png or png_of(figure)).decode()
    return part("figure", data, alt, caption, width, height)


class Pictures:
    """Figures as files in a folder, and the same as HTML. Example: `Pictures(out).add("reward", figure, alt)`."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, figure: Figure, alt: str, caption: str = "") -> Html:
        """Write `name`.png and return the `<figure>`."""
        png = png_of(figure)
        (self.folder / f"{name}.png").write_bytes(png)
        return figure_html(figure, alt, caption, png=png)


def grid(*figures: str) -> Html:
    """Figures side by side where there is room."""
    return part("grid", map(Html, figures)) if figures else Html("")


def table_html(
    rows: Sequence[Sequence[object]], header: Sequence[object], caption: str, *, align: str = ""
) -> Html:
    """A table in a box of its own that scrolls where it is too wide. The first cell of a row is its header.

    `align`: one letter a column, `l` or `r`; without it the first column is left and the others right.
    """
    return part("table", rows, header, caption, align or "l" + "r" * (len(header) - 1))


def details_html(summary: object, content: str) -> Html:
    """Content, which is HTML, that is folded away until asked for."""
    return part("details", summary, Html(content))


def note_html(text: str) -> Html:
    return part("note", text)


def page(title: str, sections: Sequence[Section], intro: str = "") -> str:
    """The whole page. `intro` is HTML that comes before the first section."""
    return _TEMPLATES.get_template("page.html").render(title=title, sections=sections, intro=Html(intro))
