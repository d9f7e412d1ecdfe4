"""What each reward function reads as the answer, and what it makes of it. Pure functions, no processes."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from hpt_ray.config.schema import RewardConfig
from hpt_ray.errors import UserError
from hpt_ray.reward.functions.extract import alternatives, last_boxed
from hpt_ray.reward.functions.row import Row
from hpt_ray.reward.functions.table import REWARD_FUNCTIONS, build, check_ground_truth, check_reward_function
from hpt_ray.types import Outcome

CORRECT, WRONG = Outcome.CORRECT, Outcome.WRONG
NO_ANSWER, UNPARSABLE = Outcome.NO_ANSWER, Outcome.UNPARSABLE


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{3}", "3"),
        (r"\boxed{3} and \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{2", "1"),  # the last balanced one
        (r"\boxed{x = \boxed{7}}", "7"),  # the one that begins last
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),  # escaped braces are not braces
        (r"\boxed {5}", "5"),
        (r"{{{ \boxed{5} }", "5"),
        (r"}}} \boxed{5}", "5"),
        (r"\boxed{}", ""),
        (r"\boxed5", "5"),
        ("no box", None),
        ("", None),
        (r"\boxed{", None),
        ("\\boxed{" * 50_000, None),
        ("\\boxed{" * 50_000 + "1" + "}" * 50_000, "1"),
        ("\\boxed{1}" * 50_000, "1"),
    ],
)
def test_last_boxed(text, answer):
    assert last_boxed(text) == answer


def test_alternatives_reads_strings_numbers_and_lists():
    assert alternatives("a") == ["a"]
    assert alternatives(3) == ["3"]
    assert alternatives(3.0) == ["3"]
    assert alternatives(0.5) == ["0.5"]
    assert alternatives(np.array(["a", "b"], dtype=object)) == ["a", "b"]
    assert alternatives(np.int64(4)) == ["4"]
    assert alternatives(["a", [2, 3.5]]) == ["a", "2", "3.5"]


@pytest.mark.parametrize("value", [None, "", "  ", [], [None], float("nan"), True, b"3", {"a": 1}, object()])
def test_unusable_ground_truths_are_refused_with_a_reason(value):
    for reward_function in ("boxed", "math", "gsm8k", "choice", "exact"):
        assert check_ground_truth(value, reward_function).startswith("the ground truth")


CASES = {
    "boxed": [
        (r"60-9=51.\boxed{ 5 1 }", "51", CORRECT),
        (r"\boxed{51}", 51, CORRECT),
        (r"\boxed{51} \boxed{52}", "51", WRONG),
        (r"\boxed{51}", r"60-9=51.\boxed{51}", CORRECT),
        (r"\boxed{51.0}", "51", WRONG),
        (r"\boxed{b}", ["a", "b"], CORRECT),
        ("So the answer is 51.", "51", NO_ANSWER),
        (r"\boxed{}", "51", NO_ANSWER),
    ],
    "exact": [
        (" Paris\n", "Paris", CORRECT),
        ("Paris!", "Paris", WRONG),
        ("", "Paris", NO_ANSWER),
        ("b", ["a", "b"], CORRECT),
        ('["a"]', '["a"]', CORRECT),
        ("a", '["a"]', WRONG),
    ],
    r"regex:Answer: (\w+)": [
        ("Answer: x\nAnswer: Paris", "Paris", CORRECT),
        ("Answer: Rome", "Paris", WRONG),
        ("Paris", "Paris", NO_ANSWER),
    ],
    r"regex:^\d+$": [("12\n13", "13", CORRECT), ("12 13", "13", NO_ANSWER)],
    "gsm8k": [
        ("4*2=8\n#### 1,234", "1234", CORRECT),
        ("#### $18.00", "18", CORRECT),
        ("#### 18 dollars per 1 day", "1", UNPARSABLE),  # which of the two?
        ("#### 17 or 18", "18", UNPARSABLE),
        (r"\boxed{17}, \boxed{18}", "18", UNPARSABLE),
        ("#### 1/2", "2", UNPARSABLE),
        ("#### 7:30", "30", UNPARSABLE),
        (r"\boxed{2^3}", "3", UNPARSABLE),
        ("#### 10 + 8 = 18", "18", CORRECT),
        ("#### 18 (since 9*2 = 18)", "18", CORRECT),
        (r"\boxed{18\text{ cm}^2}", "18", CORRECT),
        (r"\boxed{1{,}234}", "1234", CORRECT),
        (r"\boxed{1\,234}", "1,234", CORRECT),
        ("it lasts 1-3", "3", CORRECT),
        ("It is 1.8e1", "1", WRONG),
        ("It is 1.8e1", "18", CORRECT),
        ("#### -3", -3, CORRECT),
        (r"It is \boxed{18} and 7", "18", CORRECT),
        ("so 5 apples, that is 18.", "18", CORRECT),
        ("#### 18\n\nBut then 19", "18", CORRECT),
        ("#### 19", "9 + 9\n#### 18", WRONG),
        ("#### none", "18", UNPARSABLE),
        ("none", "18", NO_ANSWER),
        ("18.5", 18.5, CORRECT),
    ],
    "choice": [
        (r"\boxed{B}", "B", CORRECT),
        (r"\boxed{\text{(b)}}", "B", CORRECT),
        (r"\boxed{B. 12 apples}", "B", CORRECT),
        (r"\boxed{12}", "B", UNPARSABLE),
        ("The correct answer is (C).", "C", CORRECT),
        ("Answer: **D**", "D", CORRECT),
        ("The answer is a matter of taste. I choose option A", "A", CORRECT),
        ("The answer is B. No, the answer is C.", "C", CORRECT),
        ("(D)", "D", CORRECT),
        ("3", "3", CORRECT),
        ("The answer is Berlin", "B", NO_ANSWER),
        ("Answer: A", "B", WRONG),
        ("Answer: (b)", "B", CORRECT),
        ("The answer is B or C.", "B", WRONG),
        ("The answer is (A)/(B).", "A", WRONG),
        ("Answer: A, and B is not", "A", CORRECT),
        ("The answer is 2.5", "2", NO_ANSWER),
        ("Answer: C++", "C", NO_ANSWER),
        (r"\boxed{(A) or (B)}", "A", UNPARSABLE),
        (r"\boxed{A) and B)}", "A", UNPARSABLE),
        (r"\boxed{A}\boxed{B}", "B", UNPARSABLE),
        (r"\boxed{(A) Bread}", "A", CORRECT),
    ],
    "math": [
        (r"\boxed{\frac12}", "0.5", CORRECT),
        (r"\boxed{204}", r"\boxed{204}", CORRECT),
        (r"\boxed{3}", 3.0, CORRECT),
        (r"\boxed{3}", ["2", "3"], CORRECT),
        (r"\boxed{3}", '["2", "3"]', CORRECT),
        (r"\boxed{3}", "['2', '3']", CORRECT),
        (r"\boxed{4}", '["2", "3"]', WRONG),
        (r"\boxed{[2, 3]}", "[2, 3]", CORRECT),  # an interval
        (r"\boxed{3}", "[2, 3]", WRONG),
        (r"\boxed{10080}", r"10,\!080", CORRECT),
        (r"\boxed{1,234}", "1234", CORRECT),
        (r"\boxed{100, 200, 300}", "100,200,300", CORRECT),
        (r"\boxed{\left(3,\dfrac{\pi}{2}\right)}", r"(3, \frac{\pi}{2})", CORRECT),
        (r"\boxed{\begin{bmatrix}-2\\-14\end{bmatrix}}", r"\begin{pmatrix} -2 \\ -14 \end{pmatrix}", CORRECT),
        (r"\boxed{84, 69}", "$69$,$84$", CORRECT),
        (r"\boxed{69}", "$69$,$84$", WRONG),
        (r"\boxed{(2,1)}", "(1,2)", WRONG),
        (r"\boxed{5}", "x=5", CORRECT),
        (r"\boxed{x = 58,500}", "58500", CORRECT),
        (r"\boxed{x = \text{east}}", "east", CORRECT),
        (r"\boxed{x = 2}", "y = 2", WRONG),
        (r"\boxed{90}", r"90^\circ", CORRECT),
        (r"\boxed{\sin 30^\circ}", r"\frac{1}{2}", CORRECT),
        (r"\boxed{2\sin(20° + 30°)}", r"2\cos 40^{\circ}", CORRECT),
        (r"\boxed{1}", r"\tan 45\degree", CORRECT),
        (r"\boxed{\sin 30}", r"\frac{1}{2}", WRONG),
        (r"\boxed{e^{i\pi}}", "-1", CORRECT),
        (r"\boxed{1 + i\sqrt{3}}", r"2e^{\frac{\pi i}{3}}", CORRECT),
        (r"\boxed{e^{i\pi}}", "1", WRONG),
        (r"\boxed{k\pi, k \in Z}", r"k\pi", CORRECT),
        (r"\boxed{x = k\pi}", r"x = k\pi \quad (k \in \mathbb{Z})", CORRECT),
        (r"\boxed{2k\pi, \text{ where } k∈ℤ}", r"k\pi, k \in \mathbb{Z}", WRONG),
        (r"\boxed{12 m/s}", r"12 \text{ m/s}", CORRECT),
        (r"\boxed{12 m/s^2}", "12", CORRECT),
        (r"\boxed{\frac{12m}{s}}", "12m/s", CORRECT),  # no blank: variables
        (r"\boxed{5.4}", r"5.4 \text{ cents}", CORRECT),
        (r"\boxed{C}", r"\text{(C)}", CORRECT),
        (r"\boxed{east}", r"\text{east}", CORRECT),
        (r"\boxed{q - p}", "p - q", WRONG),
        (r"\boxed{(b+2)(a+5)}", "(a+5)(b+2)", CORRECT),
        (r"\boxed{27}", "28", WRONG),
        (r"\boxed{(((}", "28", UNPARSABLE),
        ("\\boxed{" + "a" * 5000 + "}", "28", UNPARSABLE),
        (r"\boxed{ }", "28", NO_ANSWER),
        ("the answer is $28$", "28", NO_ANSWER),
    ],
    "math:lenient": [
        ("Thus the answer is $28$.", "28", CORRECT),
        (r"\boxed{27}, or the answer is $28$", "28", WRONG),  # a box, where there is one, is the answer
        ("I do not know", "28", NO_ANSWER),
        ("The answer is 28 or 29.", "28", WRONG),
        ("The answers are 28 and 29.", "29, 28", CORRECT),
        ("The rope is 35 m long.", "35 cm", WRONG),
        (r"The area is $35\text{ cm}$.", r"35\text{ cm}^2", WRONG),
        ("The rope is 35 cm long.", "35 cm", CORRECT),
        ("The rope is 35 cm.", "35", CORRECT),
        ("He has 35 in all.", "35 cm", CORRECT),
    ],
}


@pytest.mark.parametrize(
    ("reward_function", "response", "truth", "outcome"),
    [(reward_function, *case) for reward_function, cases in CASES.items() for case in cases],
)
def test_outcomes(reward_function, response, truth, outcome):
    result = build(reward_function)(response, truth)
    assert result.outcome is outcome, result
    assert result.score == float(outcome is CORRECT)
    assert (result.extracted is None) == (outcome is NO_ANSWER)


def test_ground_truth_must_fit_its_reward_function():
    assert "no number" in check_ground_truth("none", "gsm8k")
    assert "no label" in check_ground_truth("Paris", "choice")
    assert check_ground_truth("A", "choice") is None
    assert check_ground_truth(["4", r"\boxed{5}"], "math") is None
    assert check_ground_truth(r"\boxed{}", "math") == "the ground truth is empty"
    assert check_ground_truth({"any": "thing"}, "http:http://localhost/grade") is None


def test_unknown_reward_function_names_the_nearest():
    with pytest.raises(UserError, match=r"`mth`.*Did you mean `math`"):
        check_reward_function("mth")


def test_the_configuration_key_names_every_reward_function():
    doc = RewardConfig.__dataclass_fields__["function"].metadata["doc"]
    for name, kind in REWARD_FUNCTIONS.items():
        assert kind.usage.startswith(name)
        assert kind.doc
        for usage in kind.usage.split(" or "):
            assert f"`{usage}`" in doc


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("boxed:3", "takes no argument"),
        ("math:loose", "`loose`"),
        ("regex:", "pattern is missing"),
        ("regex:(", "cannot be read"),
        ("http:localhost/grade", "http://"),
        ("python:grading.py", "a file and a function"),
        ("python:no_such_file.py:grade", "there is no file"),
    ],
)
def test_mistakes_in_arguments_are_refused_with_the_right_form(spec, message):
    name = spec.partition(":")[0]
    with pytest.raises(UserError, match=message) as caught:
        check_reward_function(spec)
    assert f"Write it as `{REWARD_FUNCTIONS[name].usage}`" in str(caught.value)


def test_python_reward_function_names_the_functions_of_the_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("raise SystemExit('checking must not run this')\ndef score(response, truth): ...\n")
    with pytest.raises(UserError, match=r"no function grade \(it has: score\)"):
        check_reward_function(f"python:{file}:grade")


def test_python_reward_function_sync_async_and_results(tmp_path):
    (tmp_path / "beside.py").write_text("LIMIT = 3\n")
    file = tmp_path / "mine.py"
    file.write_text(
        "import asyncio, beside\n"
        "from hpt_ray.types import Outcome, RewardResult\n"
        "def truth_value(response, truth): return response == truth\n"
        "async def score(response, truth):\n"
        "    await asyncio.sleep(0)\n"
        "    return len(response) / beside.LIMIT\n"
        "def result(response, truth): return RewardResult(0.5, Outcome.WRONG, 'x')\n"
        "def word(response, truth): return 'yes'\n"
    )
    assert build(f"python:{file}:truth_value")("a", "a").outcome is CORRECT
    assert build(f"python:{file}:score")("ab", None).score == pytest.approx(2 / 3)
    assert build(f"python:{file}:score")("ab", None).outcome is WRONG
    assert build(f"python:{file}:score")("abc", None).outcome is CORRECT
    assert build(f"python:{file}:result")("a", "a").extracted == "x"
    with pytest.raises(TypeError, match="a str"):
        build(f"python:{file}:word")("a", "a")


@pytest.fixture
def grading_server():
    """A real server that is busy once, then grades by equality. Yields its address and what it was sent."""
    received: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if len(received) == 1:
                self.send_error(503)
                return
            if received[-1]["response"] == "refuse":
                self.send_error(400)
                return
            score = float(received[-1]["response"] == received[-1]["ground_truth"])
            body = json.dumps({"score": score, "extracted": received[-1]["response"]}).encode()
            if received[-1]["response"] == "talk":
                body = b"<html>hello</html>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/grade", received
    server.shutdown()
    server.server_close()


def test_http_reward_function_repeats_when_busy_and_not_when_refused(grading_server):
    url, received = grading_server
    grade = build(f"http:{url}")
    assert grade("4", "4").outcome is CORRECT
    nothing = {"prompt": "", "data_source": "", "extra_info": {}}
    assert received == [{"response": "4", "ground_truth": "4", **nothing}] * 2
    row = Row("set", [{"role": "user", "content": "2 + 2?"}], {"level": 3})
    assert grade("5", "4", row).outcome is WRONG
    assert received[-1]["prompt"] == [{"role": "user", "content": "2 + 2?"}]
    assert received[-1]["data_source"] == "set"
    assert received[-1]["extra_info"] == {"level": 3}
    with pytest.raises(OSError, match="400"):
        grade("refuse", "4")
    assert len(received) == 4
    with pytest.raises(ValueError, match=f"{url} answered no JSON: <html>hello"):
        grade("talk", "4")


def test_http_reward_function_without_a_server_says_so():
    with pytest.raises(ConnectionError, match="no answer in 4 tries"):
        build("http:http://127.0.0.1:9/grade")("4", "4")
