r"""`math` on every kind of answer that docs/grading.md names: what is equal, and what is not although it looks so.

The cases are (ground truth, what stands in the box, whether it is right). `shared/cases/grading` holds more, as
whole responses; that test is skipped where it is absent.
"""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpt_ray.reward.functions.extract import after_thinking, boxed_answer
from hpt_ray.reward.functions.notation import normalise
from hpt_ray.reward.functions.table import build
from hpt_ray.types import Outcome

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "cases" / "grading" / "cases.jsonl"
RIGHT, WRONG = True, False


@pytest.fixture(scope="module")
def math():
    return build("math")


@pytest.mark.skipif(not SHARED.is_file(), reason="needs ../shared/cases/grading beside the repository")
def test_the_shared_cases():
    cases = [json.loads(line) for line in SHARED.read_text(encoding="utf-8").splitlines()]
    assert len(cases) >= 23
    for case in cases:
        result = build(case["grader"])(case["response"], case["ground_truth"])
        assert result.correct == bool(case["expected"]), (case, result)


# -- which text is the answer ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "parts"),
    [
        (r"We find \boxed{2}, \boxed{3}, and \boxed{5}.", ["2", "3", "5"]),
        (r"so $x=\boxed{1}$ and $x=\boxed{-2}$.", ["1", "-2"]),
        (r"$x=\boxed{1}$, $y=\boxed{2}$", ["x=1", "y=2"]),  # names that differ belong to the answer
        (r"\[\boxed{(2, 2)} \quad \text{and} \quad \boxed{(6, 2)}\]", ["(2, 2)", "(6, 2)"]),
        (r"\begin{align*} x&=\boxed{1},\\ y&=\boxed{2} \end{align*}", ["x=1", "y=2"]),
        (r"(a) \boxed{3} (b) \boxed{5}", ["3", "5"]),
        ("- \\boxed{3}\n- \\boxed{5}", ["3", "5"]),
        (r"\boxed{3} for part (a) and \boxed{5}", ["3", "5"]),
        (r"\boxed{3} apples, \boxed{4} pears, and \boxed{5} plums", ["3", "4", "5"]),
        (r"\boxed{1}\fbox{2}", ["1", "2"]),
        (r"\boxed{\boxed{1}, \boxed{2}}", ["1", "2"]),
        (r"\\boxed{4} or \\boxed{5}", ["4", "5"]),
        ("\\boxed{5}\n\n**Final answer**\n\n\\boxed{5}", ["5"]),
        ("\\boxed{5} \\boxed{5}", ["5"]),  # said twice
        (r"First $a=\boxed{7}$. A page later, after much work, it is \boxed{4}.", ["4"]),
        (r"\boxed{7}, so the answer is \boxed{4}", ["4"]),
        (r"\boxed{7} is wrong and \boxed{4} is right", ["4"]),
        (r"\boxed{7}, wait, \boxed{4}", ["4"]),
        (r"\boxed{3} + \boxed{4}", ["4"]),
        (r"\boxed{3} - \boxed{4}", ["4"]),
        (r"\boxed{\frac{8}{2}} = \boxed{4}", ["4"]),
        (r"\boxed{1}, \boxed{2", ["1"]),
        (r"Thus \boxed 5.", ["5"]),
        (r"$\boxed 5$ and $\boxed 7$", ["5", "7"]),
        (r"$\boxed\frac{1}{2}$", [r"\frac{1}{2}"]),
        (r"\boxed -1,234 m", ["-1,234"]),
        (r"\boxed (2, 3).", ["(2, 3)"]),
        (r"I put it in \boxed as asked", None),
    ],
)
def test_boxes_with_only_a_lists_words_between_them_are_one_answer(response, parts):
    assert boxed_answer(response) == parts


def test_long_texts_take_linear_time():
    """Anything else would not end."""
    for text in ("\\boxed{1} and ", "\\boxed", "\\boxed{", "\\fbox{1} no ", "\\boxed{1", "\\boxed 1{"):
        boxed_answer(text * 100_000)
    for text in (" ", "\\,", "~", "1 ", "{", r"5\text{", "a", "√(", "²", r"\\", "1e", "x ", "base "):
        normalise("1" + text * 20_000)


@pytest.mark.parametrize(
    ("response", "said"),
    [
        ("<think>4?</think> It is 5.", " It is 5."),
        ("4?</think> It is 5.", " It is 5."),  # the chat template opened it
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<think>4", ""),
        ("It is 5. <think>or", "It is 5. "),
        ("It is 5. <think>yes</think>", ""),
        ("I think> so", "I think> so"),
        ("It is 5.", "It is 5."),
    ],
)
def test_what_is_said_after_thinking(response, said):
    assert after_thinking(response) == said


@pytest.mark.parametrize("name", ["math", "math:lenient", "boxed", "gsm8k", "choice"])
def test_an_answer_that_stands_only_in_the_thinking_is_none(name):
    grade = build(name)
    truth = "B" if name == "choice" else "5"
    for response in (f"<think>\\boxed{{{truth}}}</think> I do not know.", f"<think>So \\boxed{{{truth}}}"):
        assert grade(response, truth).outcome is Outcome.NO_ANSWER
    assert grade(f"<think>\\boxed{{9}}</think> \\boxed{{{truth}}}", truth).correct


def test_boxes_that_all_hold_the_reference_are_right_and_a_list_of_guesses_is_not(math):
    assert math(r"\boxed{\frac12} or \boxed{0.5}", "1/2").correct
    assert not math(r"\boxed{\frac12} or \boxed{0.6}", "1/2").correct
    assert not math(r"\boxed{1} or \boxed{2}", "2").correct
    assert not math(r"\boxed{1}, \boxed{2}, \boxed{3}", "1, 2").correct
    assert not math(r"\boxed{1}, \boxed{2}", "1, 2, 3").correct
    assert not math(r"$x=\boxed{1}$, $y=\boxed{2}$", "x=2, y=1").correct
    assert math(r"$y_1=\boxed{1}$, $y_2=\boxed{2}$", "y_{1}=1, y_{2}=2").correct
    assert math(r"\boxed{1,-2}", r"\boxed{-2} and \boxed{1}").correct


# -- what is equal ---------------------------------------------------------------------------------

KINDS = {
    "mixed numbers": [
        ("2.5", "2 1/2", RIGHT),
        ("2 1/2", r"2\frac{1}{2}", RIGHT),
        ("2 1/2", "5/2", RIGHT),
        ("-2.5", "-2 1/2", RIGHT),
        ("1, 2 1/2", "1, 5/2", RIGHT),
        ("21/2", "2 1/2", WRONG),
        ("2 1/2", "21/2", WRONG),
    ],
    "units": [
        ("35", "35 cm", RIGHT),
        ("35", r"35\text{ cm}", RIGHT),
        ("35 m", "35", RIGHT),
        ("35 cm", r"35\text{ centimeters}", RIGHT),
        (r"5\text{ mph}", r"5\text{ miles per hour}", RIGHT),
        (r"35\text{ cm}^2", r"35\text{ square centimeters}", RIGHT),
        (r"35\text{ square units}", r"35\text{ cm}^2", RIGHT),
        (r"12\text{ apples}", r"12\text{ pieces}", RIGHT),
        ("35 m", "35 cm", WRONG),
        (r"\boxed{35\text{ m}}", r"x = 35\text{ cm}", WRONG),
        (r"\frac{1}{2}\text{ hours}", r"\frac12\text{ minutes}", WRONG),
        (r"35\text{ cm}^2", r"35\text{ cm}", WRONG),
        ("5 m/s", "5 km/h", WRONG),
        ("5 dollars", "5 cents", WRONG),
        ("10", "10 cm^2", RIGHT),
        ("10", r"\text{10 cm}", RIGHT),
        ("1234", r"\mathrm{1,234\ people}", RIGHT),
        ("20", r"20^\circ C", RIGHT),
        (r"20^\circ\text{C}", "20", RIGHT),
        (r"18\text{ dollars}", r"\$18.00", RIGHT),
        (r"20^\circ\text{C}", r"20^\circ\text{F}", WRONG),
        (r"20\text{ N}", r"20\text{ J}", WRONG),
        (r"5\text{ Pa}", r"5\text{ kPa}", WRONG),
        (r"\$18", r"18\text{ cents}", WRONG),
        (r"\$18", "€18", WRONG),
    ],
    "second answers in texts": [
        ("5", r"5\text{ (or 6)}", WRONG),
        ("5", r"5\text{, maybe 6}", WRONG),
        ("5", r"5\text{ or six}", WRONG),
        ("10", r"\text{10 or 11}", WRONG),
        ("10", r"\text{10 to 11}", WRONG),
        ("A", "(A) or (B)", WRONG),
        ("A", "(A) (B) (C)", WRONG),
        ("A", r"\text{(A)} or \text{(B)}", WRONG),
        ("A", r"\text{(A)}\text{(B)}", WRONG),
        ("A", r"A\text{ or B}", WRONG),
        ("5", r"\boxed{5} \boxed{}", WRONG),
        ("5", r"5\text{ cm^2}", RIGHT),
        ("A", "A. 12", RIGHT),
    ],
    "blanks between digits": [
        ("12345", "12 345", RIGHT),
        ("1234567", r"1\,234\,567", RIGHT),
        ("5, 6", r"5 \quad 6", RIGHT),
        ("12", "1 2", WRONG),
        ("3", "1 2", WRONG),
        ("56", r"5\quad 6", WRONG),
        ("123", "1 23", WRONG),
    ],
    "powers of ten in words": [
        ("2500000", r"2.5\text{ million}", RIGHT),
        ("2500000", r"\$2.5 million", RIGHT),
        (r"2.5\text{ million dollars}", "2,500,000", RIGHT),
        ("3000", r"3\text{ thousand}", RIGHT),
        ("2.5", r"2.5\text{ million}", WRONG),
        (r"2.5\text{ million}", "2.5", WRONG),
        (r"2.5\text{ million}", r"2.5\text{ billion}", WRONG),
    ],
    "tiny numbers": [
        (r"6.63 \times 10^{-34}", "6.63e-34", RIGHT),
        (r"1.6 \times 10^{-19}", r"1.60 \times 10^{-19}", RIGHT),
        (r"6.63 \times 10^{-34}", r"1.6 \times 10^{-19}", WRONG),
        ("0.0000012", "0.0000013", WRONG),
        ("0.0000012", "0", WRONG),
        (r"\frac{1}{3000}", "0.000333333", RIGHT),
    ],
    "plain spellings": [
        (r"2\pi", "2pi", RIGHT),
        (r"\frac{\pi}{2}", "pi/2", RIGHT),
        ("e^2", "exp(2)", RIGHT),
        (r"\sin x", "sin(x)", RIGHT),
        (r"\sin x", "cos(x)", WRONG),
        (r"\infty", r"\text{infinity}", RIGHT),
        ("12", r"\text{twelve}", RIGHT),
        (r"\text{Five}", "5", RIGHT),
        ("5", "5 = x", RIGHT),
        ("5", r"{\color{red}{5}}", RIGHT),
        ("5", r"\large \underline{5}\ ", RIGHT),
        ("(1,2)", r"\langle 1, 2 \rangle", RIGHT),
        (r"2\pi", "2p", WRONG),
        (r"\infty", "-infinity", WRONG),
        ("12", "eleven", WRONG),
        ("5", "6 = x", WRONG),
        ("(1,2)", r"\langle 2, 1 \rangle", WRONG),
    ],
    "dates": [
        ("2024-01-05", "2024-1-5", RIGHT),
        ("1/2/2024", "01/02/2024", RIGHT),
        ("2024-01-05", "2018", WRONG),
        ("1/2/2024", "2/4/2024", WRONG),
    ],
    "repeating decimals": [
        (r"\frac13", r"0.\overline{3}", RIGHT),
        (r"-\frac16", r"-0.1\overline{6}", RIGHT),
        (r"\frac73", r"2.\dot{3}", RIGHT),
        (r"0.3", r"0.\overline{3}", WRONG),
        (r"\frac13", r"0.3", WRONG),
        (r"\frac13", r"x.\overline{3}", WRONG),
    ],
    "words": [
        ("true", r"\text{True}", RIGHT),
        (r"\text{Monday}", "monday", RIGHT),
        (r"\text{does not exist}", r"\text{DNE}", RIGHT),
        ("yes", "no", WRONG),
    ],
    "labels of choices": [
        ("C", r"\textbf{(C) } 5", RIGHT),
        ("C", r"\text{(C) }5", RIGHT),
        ("C", r"(C) 5", RIGHT),
        ("D", r"(C) 5", WRONG),
        ("a", "(a)b", WRONG),
        ("2", "(2)3", WRONG),
    ],
    "vectors": [
        (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)", RIGHT),
        ("(1,2,3)", r"\begin{bmatrix}1\\2\\3\end{bmatrix}", RIGHT),
        ("(1,2,3)", r"\begin{pmatrix}1\\3\\2\end{pmatrix}", WRONG),
        ("(1,2)", r"\begin{pmatrix}1&2\\2&1\end{pmatrix}", WRONG),
    ],
    "bold": [("5", r"\boldsymbol{5}", RIGHT), (r"\frac12", r"\bm{\frac{1}{2}}", RIGHT)],
    "number bases": [
        ("101_2", r"101_{2}", RIGHT),
        ("101_2", r"101_{\text{two}}", RIGHT),
        ("101_2", r"(101)_2", RIGHT),
        ("101_2", r"0101_2", RIGHT),
        ("101_2", r"101 \text{ (base 2)}", RIGHT),
        ("101_2", "101 in base 2", RIGHT),
        ("1010_2", r"N = 1010_2", RIGHT),
        ("1A_{16}", "1a_{16}", RIGHT),
        ("2.1_3", "2.1_{3}", RIGHT),
        ("5_{10}", "5", RIGHT),
        ("5", "5_{10}", RIGHT),
        ("101_2, 110_2", "110_2, 101_2", RIGHT),
        ("204_5", "{204_5}", RIGHT),
        ("4210_{5}", "{4210_{5}}", RIGHT),
        ("x_1=5", "5", RIGHT),
        ("101_2", "101", WRONG),
        ("101_2", "101_{10}", WRONG),
        ("101_2", "101_3", WRONG),
        ("101_2", "5", WRONG),  # the base is what was asked for
        ("101", "101_2", WRONG),
        ("101_2, 110_2", "101, 110", WRONG),
    ],
    "sets of numbers": [
        (r"(2,\infty)", "x>2", RIGHT),
        ("x>2", r"(2,\infty)", RIGHT),
        (r"[2,\infty)", r"2\le x", RIGHT),
        (r"(2,5]", r"2<x\leq 5", RIGHT),
        (r"(2,5]", r"5 \geq x>2", RIGHT),
        (r"(2,5)", r"x>2 \text{ and } x<5", RIGHT),
        ("2<x<5", "x>2, x<5", RIGHT),
        (r"(-\infty,1)\cup(2,\infty)", r"x<1 \text{ or } x>2", RIGHT),
        (r"(-\infty,1)\cup(2,\infty)", "x<1, x>2", RIGHT),
        (r"(-\infty,1)\cup(2,\infty)", "x > 2 or x < 1", RIGHT),
        (r"(-\infty,1)\cup(2,\infty)", r"x\in(2,\infty)\cup(-\infty,1)", RIGHT),
        (r"(-\infty,1)\cup(2,\infty)", r"\mathbb{R}\setminus[1,2]", RIGHT),
        (r"x<1 \text{ or } x>2", r"x>2 \text{ or } x<1", RIGHT),
        (r"(-\infty,3)\cup(3,\infty)", r"x\neq 3", RIGHT),
        (r"x \neq 1, 2", r"x\ne1 \text{ and } x\ne 2", RIGHT),
        (r"\mathbb{R}", r"(-\infty,\infty)", RIGHT),
        (r"\mathbb{R}", r"\text{all real numbers}", RIGHT),
        (r"(-\infty,\infty)", r"x\in\mathbb{R}", RIGHT),
        (r"(2,\infty)", r"\{x \mid x>2\}", RIGHT),
        (r"\{x\in\mathbb{R} : x>2\}", r"(2,\infty)", RIGHT),
        (r"x=1 \text{ or } x>2", r"\{1\}\cup(2,\infty)", RIGHT),
        (r"(1,2)\cup(3,4)", "(1,2), (3,4)", RIGHT),
        ("(0,1)", "0<f(x)<1", RIGHT),
        ("x>y", "y<x", RIGHT),
        (r"(a,\infty)", "x>a", RIGHT),
        (r"(\frac12,\sqrt2)", r"\frac{1}{2}<x<\sqrt{2}", RIGHT),
        (r"[2,\infty)", "x>2", WRONG),
        ("x<2", r"(-\infty,2]", WRONG),
        ("x>2", "y>2", WRONG),
        ("(2,5]", "2<x<5", WRONG),
        (r"(-\infty,1)\cup(2,\infty)", r"(-\infty,1)", WRONG),
        (r"(-\infty,1)\cup(2,\infty)", r"x<1 \text{ or } x\ge2", WRONG),
        (r"(-\infty,1)\cup(2,\infty)", r"x<1 \text{ and } x>2", WRONG),
        (r"x\ne 3", r"x\neq 4", WRONG),
        ("x>4", "2x>8", WRONG),  # not solved
    ],
    "scientific notation": [
        (r"3 \times 10^{8}", "3e8", RIGHT),
        (r"3 \times 10^{8}", "3E+8", RIGHT),
        (r"3 \times 10^{8}", "3.0e8", RIGHT),
        (r"3 \times 10^{8}", "3*10**8", RIGHT),
        (r"3 \times 10^{8}", r"3 \cdot 10^8", RIGHT),
        (r"3 \times 10^{8}", "3 x 10^8", RIGHT),
        (r"3 \times 10^{8}", "3×10⁸", RIGHT),
        ("3e8", "300,000,000", RIGHT),
        (r"3 \times 10^{-5}", "3e-05", RIGHT),
        ("0.001", "10^-3", RIGHT),
        ("2e-1", "-1+2e", RIGHT),  # Euler's number
        ("2e - 1", "2e-1", RIGHT),
        ("1e3, 2e3", "2000, 1000", RIGHT),
        (r"6.02 \times 10^{23}", "6.02e22", WRONG),
        (r"1.5 \times 10^{-3}", "1.6e-3", WRONG),
    ],
    "Unicode": [
        (r"\sqrt{2}", "√2", RIGHT),
        (r"2\sqrt{3}", "2√3", RIGHT),
        (r"\sqrt{x^2+1}", "√(x²+1)", RIGHT),
        (r"\sqrt{\sqrt{2}}", "√√2", RIGHT),
        ("2", "∛8", RIGHT),
        (r"\frac12", "½", RIGHT),
        ("2.5", "2½", RIGHT),
        ("x^2", "x²", RIGHT),
        ("x^{-1}", "x⁻¹", RIGHT),
        ("a_1", "a₁", RIGHT),
        ("-3", "−3", RIGHT),
        ("6", "2×3", RIGHT),
        (r"2\pi", "2π", RIGHT),
        (r"x\leq 3", "x ≤ 3", RIGHT),
        (r"(-\infty,1)\cup(2,\infty)", "(−∞, 1) ∪ (2, ∞)", RIGHT),
        (r"x \in \mathbb{R}", "x ∈ ℝ", RIGHT),
        ("90", "90°", RIGHT),
        ("(1,2)", "（1，2）", RIGHT),
        ("x+y", "𝑥+𝑦", RIGHT),
        (r"\sqrt{2}", "√3", WRONG),
        ("x^2+1", "x³+1", WRONG),
        (r"x\leq 3", "x ≥ 3", WRONG),
    ],
    "the empty set": [
        (r"\emptyset", r"\varnothing", RIGHT),
        (r"\varnothing", r"\{\}", RIGHT),
        (r"\emptyset", "∅", RIGHT),
        (r"\emptyset", r"\text{no solution}", RIGHT),
        (r"\text{No real solutions}", r"\varnothing", RIGHT),
        (r"\emptyset", r"\text{the empty set}", RIGHT),
        (r"\emptyset", "0", WRONG),
        (r"\varnothing", r"\{0\}", WRONG),
    ],
    "approximately": [
        ("3.14", r"\approx 3.14", RIGHT),
        ("3.14", "≈3.14", RIGHT),
        ("3.14", r"x \approx 3.14", RIGHT),
        (r"\approx 3.14", "3.14", RIGHT),
        ("3.14", r"\text{approximately } 3.14", RIGHT),
        ("3.14", r"\approx 3.15", WRONG),
        ("3.14", r"\pi", WRONG),
    ],
    "not evaluated": [
        (r"\frac13", r"\int_0^1 x^2 dx", WRONG),
        ("55", r"\sum_{k=1}^{10} k", WRONG),
        ("120", r"\prod_{k=1}^5 k", WRONG),
        ("0", r"\lim_{x\to 0} x", WRONG),
        ("2x", r"\frac{d}{dx}x^2", WRONG),
        ("2x", r"\frac{\partial}{\partial x} x^2", WRONG),
        ("13", r"1+2+\ldots+10", WRONG),
        ("1", "∑_{k=1}^{1} k", WRONG),
        (r"\int_0^1 x^2 dx", r"\int_0^2 x^2 dx", WRONG),
        (r"\int_0^1 x^2 dx", r"\int_0^1 x^2\,dx", RIGHT),
        (r"\int_0^1 x^2 dx", r"\frac13", RIGHT),
        (r"\frac13", r"\int_0^1 x^2 dx = \frac13", RIGHT),
        ("2x", r"\frac{dy}{dx} = 2x", RIGHT),
        (r"1, 2, \ldots, 10", "1, 2, ..., 10", RIGHT),
    ],
    "times of day and ratios": [
        ("12:00", "12:00", RIGHT),
        ("09:30", "9:30", RIGHT),
        ("3:30 PM", r"3:30 \text{ p.m.}", RIGHT),
        ("3:30 PM", "15:30", RIGHT),
        ("3:30", r"3:30 \text{ PM}", RIGHT),
        (r"10:00 \text{ a.m.}", "10 AM", RIGHT),
        ("1:2", "2:4", RIGHT),
        ("1:2:3", "2:4:6", RIGHT),
        ("12:00", "1:00", WRONG),
        ("12:05", "12:50", WRONG),
        ("3:30 PM", "3:30 AM", WRONG),
        ("12:00", "12", WRONG),
        ("1:2:3", "1:6:1", WRONG),
    ],
    "functions": [
        ("f(x)", "f(x)", RIGHT),
        ("f(x)+1", "1+f(x)", RIGHT),
        ("f(x)=x^2", "x^2", RIGHT),
        ("f(x)", "f(y)", WRONG),
        ("f(x)", "g(x)", WRONG),
        ("f(x)+1", "f(y)+1", WRONG),
        ("f'(x)", "f(x)", WRONG),
        ("y'", "y", WRONG),
    ],
    "plus or minus": [
        (r"\pm 2021", "-2021, 2021", RIGHT),
        ("5, -5", "±5", RIGHT),
        (r"x=\pm 5", r"x=5 \text{ or } x=-5", RIGHT),
        (r"1\pm\sqrt5", r"1+\sqrt5, 1-\sqrt5", RIGHT),
        (r"\frac{1\pm\sqrt5}{2}", r"\frac{1+\sqrt5}{2}, \frac{1-\sqrt5}{2}", RIGHT),
        (r"(1,\pm2)", "(1,2),(1,-2)", RIGHT),
        (r"\pm 1, \pm 2", "1,-1,2,-2", RIGHT),
        (r"\{1\pm\sqrt5, -2\}", r"\{-2, 1-\sqrt5, 1+\sqrt5\}", RIGHT),
        (r"\pm 2021", "2021", WRONG),
        (r"\pm 2021", "-2021", WRONG),
        ("5", r"\pm 5", WRONG),
        (r"\pm 1, \pm 2", "1,-1,2", WRONG),
    ],
    "lists and spellings": [
        ("x=1, y=2", "y=2, x=1", RIGHT),
        ("2, 3", "3 and 2", RIGHT),
        ("28%", "28 percent", RIGHT),
        (r"-2 \leq x \leq 7", r"-2 \\le x \\le 7", RIGHT),
        (r"1-\frac1e", r"1-\frac{1}{\mathrm{e}}", RIGHT),
        ("5", r"5\mathrm{m}", RIGHT),
        ("x=1, y=2", "x=2, y=1", WRONG),
        ("2, 3", "2, 3, 5", WRONG),
        ("2, 3, 5", "2, 3", WRONG),
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_answers(math, kind):
    results = [(case, math(f"So \\boxed{{{case[1]}}}.", case[0])) for case in KINDS[kind]]
    assert [(case, result) for case, result in results if result.correct != case[2]] == []
    assert all(result.detail for _, result in results)  # the stage that decided


NUMBERS = st.integers(-99, 99)


@settings(max_examples=40, deadline=None)
@given(low=NUMBERS, length=st.integers(1, 50), closed=st.tuples(st.booleans(), st.booleans()), other=NUMBERS)
def test_an_interval_equals_its_relations_and_no_other(math, low, length, closed, other):
    def relation(low: int, high: int, closed: tuple[bool, bool]) -> str:
        return rf"{low} {'<≤'[closed[0]]} x {'<≤'[closed[1]]} {high}"

    high = low + length
    truth = f"{'(['[closed[0]]}{low}, {high}{')]'[closed[1]]}"
    assert math(rf"\boxed{{{relation(low, high, closed)}}}", truth).correct
    assert not math(rf"\boxed{{{relation(low, high, (closed[0], not closed[1]))}}}", truth).correct
    assert math(rf"\boxed{{{relation(low, max(other, low + 1), closed)}}}", truth).correct == (
        max(other, low + 1) == high
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(NUMBERS, min_size=2, max_size=5, unique=True), st.randoms(use_true_random=False))
def test_a_list_in_boxes_is_right_in_any_order_and_only_if_whole(math, values, random):
    shuffled = random.sample(values, len(values))
    boxes = [f"\\boxed{{{value}}}" for value in shuffled]
    truth = ", ".join(map(str, values))
    assert math(", ".join(boxes[:-1]) + " and " + boxes[-1], truth).correct
    assert not math(", ".join(boxes[:-1]), truth).correct
    assert not math(" ".join([*boxes, r"\boxed{100}"]), truth).correct


@settings(deadline=None)
@given(st.text(max_size=80))
def test_normalising_takes_any_text(text):
    assert len(normalise(text)) <= 20 * len(text)
