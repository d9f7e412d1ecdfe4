"""The notebook is the tutorial: docs/notebook.py writes it from the page."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAKE = runpy.run_path(str(ROOT / "docs" / "notebook.py"))
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


def test_the_notebook_says_what_the_page_says() -> None:
    written = (ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8")
    assert written == MAKE["text_of"](PAGE), "run `make docs`"


def test_a_file_is_written_and_commands_are_run_in_the_order_of_the_page() -> None:
    page = "# Title\n\nText.\n\n```python\n# a.py\nprint(1)\n```\n\n```sh\npython a.py\n```\n"
    assert MAKE["cells"](page) == [
        ("markdown", "# Title\n\nText."),
        ("code", MAKE["BEGIN"]),
        ("code", "%%writefile a.py\nprint(1)"),
        ("code", "%%bash\npython a.py"),
    ]


def test_every_file_is_written_before_it_is_used() -> None:
    there: set[str] = set()
    for _, text in MAKE["cells"](PAGE):
        first, _, rest = text.partition("\n")
        if first.startswith("%%writefile "):
            there.add(first.split()[1])
        elif first == "%%bash":
            used = {word for word in rest.split() if word.endswith((".py", ".yaml"))}
            assert used <= there
