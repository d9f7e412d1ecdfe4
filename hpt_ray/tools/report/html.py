"""HTML from parts: sections, figures with the picture embedded, tables, and the page around them.

A page is one file: pictures are data URIs, the style is in it, there is no script, and nothing is fetched
when it is opened. Cells and titles are text and are escaped here; what is HTML already is marked `Html`.
Nothing here knows what is shown.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from hpt_ray.tools.report.css import CSS

PIXELS_PER_INCH = 192  # two pixels of the file on one of the page, for sharp letters on dense screens

# Control characters and lone surrogates, which no HTML file may hold, and what turns the reading direction.
_NOT_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


class Html(str):
    """Text that is HTML already and is not to be escaped. Example: `Html("<b>0.5</b>")`."""

    __slots__ = ()


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
    if isinstance(text, Html):
        return text
    return Html(html.escape(_NOT_TEXT.sub("\N{REPLACEMENT CHARACTER}", str(text))))


def png_of(figure: Figure) -> bytes:
    """The picture as it is embedded and as it is written to a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PIXELS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def figure_html(figure: Figure, alt: str, caption: str = "") -> Html:
    """A `<figure>` with the picture in it. `alt` says in words what is seen; `caption` stands below."""
    return _figure(png_of(figure), figure, alt, caption)


def _figure(png: bytes, figure: Figure, alt: str, caption: str) -> Html:
    width, height = (round(float(inches) * 96) for inches in figure.get_size_inches())
    data = base64.b64encode(png).decode()
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return Html(
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(alt)}" width="{width}" '
        f'height="{height}">{below}</figure>\n'
    )


class Pictures:
    """Figures as files in a folder, and the same as HTML. Example: `Pictures(out).add("reward", figure, alt)`."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, figure: Figure, alt: str, caption: str = "") -> Html:
        """Write `name`.png and return the `<figure>`."""
        png = png_of(figure)
        (self.folder / f"{name}.png").write_bytes(png)
        return _figure(png, figure, alt, caption)


def grid(*figures: str) -> Html:
    """Figures side by side where there is room."""
    return Html(f'<div class="grid">{"".join(figures)}</div>\n') if figures else Html("")


def table_html(
    rows: Sequence[Sequence[object]], header: Sequence[object], caption: str, *, align: str = ""
) -> Html:
    """A table in a box of its own that scrolls where it is too wide. The first cell of a row is its header.

    `align`: one letter a column, `l` or `r`; without it the first column is left and the others right.
    """
    align = align or "l" + "r" * (len(header) - 1)
    heads = "".join(
        f'<th scope="col" class="{side}">{escape(cell)}</th>'
        for side, cell in zip(align, header, strict=True)
    )
    body = "".join(f"<tr>{_cells(row, align)}</tr>\n" for row in rows)
    return Html(
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<caption><span>{escape(caption)}</span></caption><thead><tr>{heads}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


def _cells(row: Sequence[object], align: str) -> str:
    first, *others = (f'class="{side}">{escape(cell)}' for side, cell in zip(align, row, strict=True))
    return f'<th scope="row" {first}</th>' + "".join(f"<td {other}</td>" for other in others)


def facts_html(facts: Sequence[tuple[str, object]]) -> Html:
    """Names and values in a few words each."""
    pairs = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts)
    return Html(f'<dl class="facts">{pairs}</dl>\n')


def details_html(summary: object, content: str, *, is_open: bool = False) -> Html:
    """Content that is folded away until asked for."""
    state = " open" if is_open else ""
    return Html(f"<details{state}><summary>{escape(summary)}</summary>\n{content}</details>\n")


def note_html(text: str) -> Html:
    return Html(f'<p class="note">{escape(text)}</p>\n')


def swatch(color: str) -> Html:
    """A chip in a colour of the figures, to stand before the name it belongs to."""
    return Html(f'<span class="swatch" style="background:{escape(color)}"></span>')


def page(title: str, sections: Sequence[Section], intro: str = "") -> str:
    """The whole page. `intro` is HTML that comes before the first section."""
    links = "".join(f'<li><a href="#{s.anchor}">{escape(s.title)}</a></li>' for s in sections)
    parts = "".join(
        f'<section id="{s.anchor}"><h2>{escape(s.title)}</h2>\n{s.html}</section>\n' for s in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{CSS}</style>
</head>
<body>
<header><h1>{escape(title)}</h1>
{intro}</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
{parts}</main>
</body>
</html>
"""
