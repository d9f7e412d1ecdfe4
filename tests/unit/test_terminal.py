"""No text of a user's data, of a model or of an error steers the terminal or a log."""

import io
import subprocess
import sys

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from hpt_ray.errors import UserError, exit_code
from hpt_ray.observe.console import CommandConsole
from hpt_ray.utils import signals

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"


def is_quiet(text: str) -> bool:
    return not set(text) & set("\x1b\x07\x9b\u202e")


def test_whatever_a_command_prints_is_escaped() -> None:
    console = CommandConsole(file=io.StringIO(), width=100)
    table = Table(HOSTILE)
    table.add_row(HOSTILE, Text(HOSTILE))
    for shown in (HOSTILE, Text(HOSTILE), table, Panel(HOSTILE, title=HOSTILE), {"a": HOSTILE}):
        console.print(shown)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert is_quiet(text)
    assert text.count("␛]0;owned") >= 5


def test_its_own_colours_stay() -> None:
    console = CommandConsole(file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(Text(HOSTILE, "red"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.startswith("\x1b[31m")
    assert "\x1b]" not in text


def test_errors_are_escaped_on_stderr_and_in_the_log(tmp_path, capsys) -> None:
    assert exit_code(UserError(f"data/{HOSTILE}.jsonl: no such file")) == 2
    assert exit_code(RuntimeError(HOSTILE), tmp_path) == 1
    assert exit_code(RuntimeError(HOSTILE)) == 1
    said = capsys.readouterr()
    log = (tmp_path / "driver.log").read_text(encoding="utf-8")
    assert is_quiet(said.err + said.out + log)
    assert "␛]0;owned␇" in said.err
    assert "␛]0;owned␇" in log


def test_what_is_said_at_a_stop_is_escaped(capfd) -> None:
    signals.say(HOSTILE)
    assert is_quiet(capfd.readouterr().err)


def test_a_command_escapes_what_it_was_given(tmp_path) -> None:
    file = tmp_path / "responses.jsonl"
    file.write_text('{"response": "\\u001b[2J 4", "ground_truth": "\\u001b]0;owned\\u0007"}\n')
    words = [sys.executable, "-m", "hpt_ray", "grade", str(file), "--reward-function", "exact"]
    found = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert is_quiet(found.stdout)
    assert "␛]0;owned␇" in found.stdout
