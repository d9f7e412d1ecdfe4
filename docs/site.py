"""The hook of mkdocs.yml: pages and files outside docs/ that a page links to become part of the site.

In the repository a page links to `../README.md` or `../configs/quickstart.yaml`, as GitHub wants it. The site has docs/
at its top, README.md as its index.md, and every other file at its path in the repository.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")  # the path of a link to a file, without its anchor
CODE = re.compile(r"^ *```.*?^ *```|`[^`]+`", re.MULTILINE | re.DOTALL)  # in which nothing is a link


def slug(heading: str, separator: str = "-") -> str:
    """The anchor of a heading, as GitHub makes it. Example: "What it's for" → `what-its-for`."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", separator)


def in_site(path: str) -> str:
    """Where a file of the repository lies in the site. Example: `docs/data.md` → `data.md`."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def in_repository(uri: str) -> str:
    """The file of the repository that lies at `uri` in the site. Example: `data.md` → `docs/data.md`."""
    if uri == "index.md":
        return "README.md"
    return f"docs/{uri}" if (ROOT / "docs" / uri).is_file() else uri


def linked(page: str) -> list[str]:
    """Paths in the repository of all files to which a page of the repository links, there or not."""
    text = CODE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    return [posixpath.normpath(posixpath.join(posixpath.dirname(page), link)) for link in LINK.findall(text)]


def outside(pages: list[str]) -> list[str]:
    """The files outside docs/ that these pages, or pages outside docs/ that they link to, link to."""
    found: dict[str, None] = {}
    waiting = [*pages]
    while waiting:
        page = waiting.pop()
        for path in linked(page):
            if not path.startswith("docs/") and path not in found and (ROOT / path).is_file():
                found[path] = None
                if path.endswith(".md"):
                    waiting.append(path)
    return [*found]


def on_config(config):
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    return config


def on_files(files, config):
    from mkdocs.structure.files import File

    pages = [in_repository(file.src_uri) for file in files.documentation_pages()]
    for path in outside(["README.md", *pages]):
        files.append(File.generated(config, in_site(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links as the site needs them; those that lead nowhere stay as they are, so that the build names them."""
    here = in_repository(page.file.src_uri)

    def moved(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), link[1]))
        return posixpath.relpath(in_site(path), posixpath.dirname(page.file.src_uri) or ".")

    texts, codes = CODE.split(markdown), [*CODE.findall(markdown), ""]
    return "".join(LINK.sub(moved, text) + code for text, code in zip(texts, codes, strict=True))


def on_page_content(html, page, config, files):
    """A pipe in a table's cell, which Markdown wants escaped, is shown as a pipe, as on GitHub."""
    return re.sub(r"<td.*?</td>", lambda cell: cell[0].replace("\\|", "|"), html, flags=re.DOTALL)
