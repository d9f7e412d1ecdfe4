"""The pool of killable processes: limits, deaths, independence of order, hostile answers. Real processes."""

import os
import time

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpt_ray.reward.pool import Pool, Task
from hpt_ray.types import Outcome
from hpt_ray.utils.plugins import VARIABLE

BEHAVIOUR = """
import gc, os, pickle, signal, socket, subprocess, sys, time
from hpt_ray.types import Outcome, RewardResult

class Attack:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.system, (f"touch {self.path}",)

def forge(argument):
    (connection,) = [thing for thing in gc.get_objects() if isinstance(thing, socket.socket)]
    kind, _, path = argument.partition(" ")
    lines = {
        "pickle": pickle.dumps(Attack(path)) + b"\\n",
        "outcome": b'[1, "perfect"]\\n',
        "huge": b"x" * 5_000_000,
        "deep": b"[" * 100_000 + b"\\n",
        "score": b'["1", "correct"]\\n',
        "dict": b'{"score": 1}\\n',
    }
    connection.sendall(lines[kind])
    time.sleep(600)

def behave(response, truth):
    word, _, argument = response.partition(" ")
    if word == "sleep": time.sleep(float(argument))
    if word == "spin":
        while True: pass
    if word == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        while True: time.sleep(1)
    if word == "family":
        child = subprocess.Popen(["sleep", "600"])
        open(argument, "w").write(str(child.pid))
        child.wait()
    if word == "daemon":
        code = (
            "import os, time; os.setsid(); os.fork() and os._exit(0); "
            f"open({argument + '_'!r}, 'w').write(str(os.getpid())); "
            f"os.rename({argument + '_'!r}, {argument!r}); time.sleep(600)"
        )
        subprocess.Popen([sys.executable, "-c", code], env={}).wait()
        while not os.path.exists(argument): time.sleep(0.01)
        if truth == "hang": time.sleep(600)
        if truth == "die": os._exit(3)
    if word == "forge": forge(argument)
    if word == "segfault": os.kill(os.getpid(), signal.SIGSEGV)
    if word == "exit": os._exit(3)
    if word == "leave": raise SystemExit(3)
    if word == "raise": raise KeyError("missing")
    if word == "eat": bytearray(int(argument))
    if word == "long": return RewardResult(0.0, Outcome.WRONG, "x" * 1_000_000)
    if word == "nan": return float("nan")
    return response == truth
"""


@pytest.fixture(scope="module")
def behave(tmp_path_factory):
    file = tmp_path_factory.mktemp("reward_functions") / "behaviour.py"
    file.write_text(BEHAVIOUR)
    return f"python:{file}:behave"


def children() -> list[psutil.Process]:
    """The grading processes of this test: the one child of each keeper."""
    keepers = [
        child
        for child in psutil.Process().children()
        if child.pid not in OTHERS and "hpt_ray.reward.pool" in " ".join(child.cmdline())
    ]
    return [child for keeper in keepers for child in keeper.children()]


OTHERS: set[int] = set()  # those that tests before left, such as the pool of `hpt_ray.reward.grade`


@pytest.fixture(autouse=True)
def _others():
    OTHERS.clear()
    OTHERS.update(child.pid for child in psutil.Process().children())


def test_results_come_in_the_order_of_the_tasks():
    with Pool(2) as pool:
        results = pool.grade([Task("boxed", rf"\boxed{{{i}}}", str(i - i % 3)) for i in range(300)])
    assert [result.correct for result in results] == [i % 3 == 0 for i in range(300)]
    assert [result.extracted for result in results] == [str(i) for i in range(300)]


def test_no_tasks_no_results():
    with Pool() as pool:
        assert pool.grade([]) == []


def test_a_hanging_answer_is_killed_while_others_are_graded(behave):
    with Pool(2, timeout_s=1.5) as pool:
        started = time.monotonic()
        hanging = pool.submit([Task(behave, "stubborn", "")])
        others = pool.submit([Task(behave, "a", "a")] * 200)
        assert all(result.correct for result in others.result(timeout=10))
        assert not hanging.done()
        [result] = hanging.result(timeout=10)
        assert result.outcome is Outcome.TIMEOUT
        assert "1.5 s" in result.detail
        assert 1.5 <= time.monotonic() - started < 4
        assert pool.num_replaced == 1


def test_only_the_hanging_answer_of_a_batch_is_lost(behave):
    responses = ["a", "spin", "a", "sleep 0.2", "spin", "a"]
    with Pool(1, timeout_s=0.6) as pool:
        outcomes = [v.outcome for v in pool.grade([Task(behave, text, "a") for text in responses])]
        assert pool.num_replaced == 2
    correct, wrong, timeout = Outcome.CORRECT, Outcome.WRONG, Outcome.TIMEOUT
    assert outcomes == [correct, timeout, correct, wrong, timeout, correct]


def test_a_killed_reward_function_takes_its_own_children_along(behave, tmp_path):
    note = tmp_path / "pid"
    with Pool(1, timeout_s=0.8) as pool:
        assert pool.grade([Task(behave, f"family {note}", "")])[0].outcome is Outcome.TIMEOUT
        pid = int(note.read_text())
        deadline = time.monotonic() + 5
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("then", ["hang", "die", "go on"])
def test_what_a_reward_function_sends_into_the_background_ends_with_it(behave, tmp_path, then):
    note = tmp_path / "pid"
    with Pool(1, timeout_s=5.0) as pool:
        (result,) = pool.grade([Task(behave, f"daemon {note}", then)])
        pid = int(note.read_text())
        if then == "go on":
            assert result.outcome is Outcome.WRONG
            assert psutil.pid_exists(pid)  # it may be of use to the next response
        else:
            assert is_gone(pid)
    assert is_gone(pid)


def test_what_a_grading_process_sends_is_read_as_data(behave, tmp_path):
    kinds = {
        "pickle": "ended",
        "outcome": "its outcome is 'perfect'",
        "huge": "ended",
        "deep": "ended",
        "score": "its score is '1'",
        "dict": "no result",
    }
    for kind, said in kinds.items():
        with Pool(1, timeout_s=5.0) as pool:
            (result,) = pool.grade([Task(behave, f"forge {kind} {tmp_path / 'owned'}", "")])
        assert result.outcome is Outcome.ERROR, kind
        assert said in result.detail, kind
    assert not (tmp_path / "owned").exists()


def test_failures_of_a_reward_function_are_values_with_a_reason(behave):
    expected = {
        "segfault": "SIGSEGV",
        "exit": "exit code 3",
        "leave": "SystemExit",
        "raise": "KeyError",
        "eat 900000000": "needed more than 512 MB",
        "nan": "score is nan",
    }
    with Pool(1, memory_mb=512) as pool:
        tasks = [Task(behave, text, "a") for word in expected for text in ("a", word)]
        results = pool.grade(tasks)
    assert all(result.correct for result in results[::2])
    for (word, detail), result in zip(expected.items(), results[1::2], strict=True):
        assert result.outcome is Outcome.ERROR, word
        assert detail in result.detail


def test_what_comes_back_is_small(behave):
    with Pool() as pool:
        assert len(pool.grade([Task(behave, "long", "")])[0].extracted) < 1000


def test_unusable_inputs_are_errors_and_the_pool_goes_on(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_module\ndef grade(response, truth): ...\n")
    with Pool() as pool:
        results = pool.grade(
            [
                Task("math", r"\boxed{1}", None),
                Task("boxed", r"\boxed{1}", lambda: 1),  # cannot be pickled
                Task("unheard-of", "", "1"),
                Task(f"python:{broken}:grade", "", "1"),
                Task("boxed", r"\boxed{1}", "1"),
            ]
        )
        assert pool.num_replaced == 0
    assert [result.outcome for result in results] == [Outcome.ERROR] * 4 + [Outcome.CORRECT]
    reasons = ["missing", "cannot be sent", "Unknown reward function", "no_such_module"]
    for reason, result in zip(reasons, results[:4], strict=True):
        assert reason in result.detail


def test_a_file_that_never_finishes_loading_is_an_error_that_names_the_function(tmp_path, monkeypatch):
    monkeypatch.setattr("hpt_ray.reward.pool.LOAD_TIMEOUT_S", 2.0)
    file = tmp_path / "stuck.py"
    file.write_text("import time\ntime.sleep(600)\ndef grade(response, truth): ...\n")
    with Pool() as pool:
        stuck, other = pool.grade([Task(f"python:{file}:grade", "", "1"), Task("boxed", r"\boxed{1}", "1")])
        assert pool.num_replaced == 1
    assert stuck.outcome is Outcome.ERROR
    assert "could not be loaded: that took longer than 2 s" in stuck.detail
    assert other.correct


PLUGIN = """
from hpt_ray.reward import REWARD_FUNCTIONS, RewardFunctionKind
from hpt_ray.types import Outcome, RewardResult

def make(argument):
    def starts(response, ground_truth):
        correct = response.startswith(argument + ground_truth)
        return RewardResult(float(correct), Outcome.CORRECT if correct else Outcome.WRONG, response)
    return starts

def check_argument(argument):
    if not argument:
        raise ValueError("a beginning is needed")

REWARD_FUNCTIONS["starts"] = RewardFunctionKind(
    "starts:TEXT", "the response begins with the text and the reference", make, check_argument=check_argument
)
"""


def test_a_reward_function_of_a_users_file_is_known_in_the_grading_processes(tmp_path, monkeypatch):
    file = tmp_path / "starting.py"
    file.write_text(PLUGIN)
    tasks = [Task("starts:so ", text, "7") for text in ("so 7.", "7")] + [Task("starts:", "7", "7")]
    monkeypatch.setenv(VARIABLE, str(file))  # as `plugins.load` does in the process that starts the pool
    with Pool(2, preload=["starts:so "]) as pool:
        correct, wrong, refused = pool.grade(tasks)
        assert pool.num_replaced == 0
    assert correct.correct
    assert wrong.outcome is Outcome.WRONG
    assert "a beginning is needed. Write it as `starts:TEXT`" in refused.detail
    monkeypatch.delenv(VARIABLE)
    with Pool() as pool:
        assert "Unknown reward function" in pool.grade(tasks)[0].detail


def test_a_users_file_that_cannot_be_imported_is_an_error_that_names_it(tmp_path, monkeypatch):
    file = tmp_path / "broken.py"
    file.write_text("import no_such_module\n")
    monkeypatch.setenv(VARIABLE, str(file))
    with Pool() as pool:
        [result] = pool.grade([Task("boxed", r"\boxed{1}", "1")])
    assert result.outcome is Outcome.ERROR
    assert "broken.py" in result.detail
    assert "no_such_module" in result.detail


def test_a_process_killed_from_outside_costs_no_answer(behave):
    with Pool(1) as pool:
        pool.grade([Task(behave, "a", "a")])
        [child] = children()
        future = pool.submit([Task(behave, "sleep 0.5", "a"), Task(behave, "a", "a")])
        time.sleep(0.2)
        child.kill()
        assert [v.outcome for v in future.result(timeout=10)] == [Outcome.WRONG, Outcome.CORRECT]


def test_close_ends_everything_and_answers_whoever_waits(behave):
    pool = Pool(2)
    future = pool.submit([Task(behave, "spin", "")] * 5)
    time.sleep(0.5)
    started = time.monotonic()
    pool.close()
    assert time.monotonic() - started < 2
    assert [result.outcome for result in future.result(timeout=1)] == [Outcome.ERROR] * 5
    assert children() == []
    with pytest.raises(RuntimeError, match="stopped"):
        pool.submit([])


def test_grading_processes_stay_light():
    with Pool() as pool:
        started = time.monotonic()
        pool.grade([Task("boxed", r"\boxed{1}", "1")])
        assert time.monotonic() - started < 3  # about 0.15 s on an idle machine
        [child] = children()
        mapped = {os.path.basename(region.path) for region in child.memory_maps()}
        assert not any("torch" in name or "raylet" in name for name in mapped)
        assert child.memory_info().rss < 150 * 2**20


MIXED = [
    Task("math", r"\boxed{\frac12}", "0.5"),
    Task("math", r"\boxed{x^2+2x+1}", "(x+1)^2"),
    Task("math", r"\boxed{x^2+2x}", "(x+1)^2"),
    Task("math", r"\boxed{((}", "1"),
    Task("math:lenient", "the answer is $7$", "7"),
    Task("math", "nothing", "7"),
    Task("math", r"\boxed{7}", None),
    Task("boxed", r"\boxed{7}", "7"),
    Task("gsm8k", "#### 8", "7"),
    Task("choice", "Answer: C", "C"),
    Task("exact", "b", ["a", "b"]),
    Task("regex:is (.*)$", "it is 3", 3),
]


@pytest.fixture(scope="module")
def pools():
    with Pool(1) as one, Pool(2) as two, Pool(3) as three:
        yield [one, two, three]


@pytest.fixture(scope="module")
def alone():
    """The result of each task from a process that graded nothing else."""
    results = []
    for task in MIXED:
        with Pool() as pool:
            results += pool.grade([task])
    return results


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, len(MIXED) - 1), max_size=40), which=st.integers(0, 2))
def test_results_depend_on_neither_order_nor_number_of_processes(pools, alone, order, which):
    results = pools[which].grade([MIXED[index] for index in order])
    assert results == [alone[index] for index in order]


HOSTILE = [
    "\\boxed{" + "{" * 100_000,
    "\\boxed{" + "{" * 50_000 + "}" * 50_000 + "}",
    "\\boxed{" + "(" * 900 + "1" + ")" * 900 + "}",
    "\\boxed{" + "\\frac{1}{" * 150 + "2" + "}" * 150 + "}",
    "\\boxed{" + "\\sqrt{" * 300 + "2" + "}" * 300 + "}",
    r"\boxed{9^{9^{9^9}}}",
    r"\boxed{9**9**9**9}",
    r"\boxed{(9^{9^{9}})!}",
    r"\boxed{\sum_{k=1}^{10^{100}} \frac{1}{k!}}",
    r"\boxed{\int_0^1 e^{e^{e^{x}}} dx}",
    r"\boxed{10^{1000000000}}",
    "\\boxed{" + "9" * 1_000_000 + "}",
    "\\boxed{" + "9" * 1900 + "}",
    "1" * 1_000_000,
    "\\boxed{1}" * 5_000 + "}",
    "\\boxed{" * 20_000,
    "\\boxed{\x00}\x00",
    "\\boxed{\ud800}",
    "\\boxed{\u202e12\u202c}",
    "\\boxed{٣}",
    r"\boxed{\def\x{\x\x}\x}",
    r"\boxed{\input{/etc/passwd}}",
    r"\boxed{__import__('os').system('exit 1')}",
    r"\boxed{\text{exec('while True: pass')}}",
    r"\boxed{\left\{\begin{array}{}}",
    "\\boxed{" + "x+" * 900 + "x}",
    "\\boxed{" + ",".join(map(str, range(400))) + "}",
    "\\boxed{\\begin{pmatrix}" + "1&" * 300 + "1\\end{pmatrix}}",
    r"\boxed{\frac{}{}}",
    r"\boxed{\%\$\#\_\&}",
    "",
]


@pytest.mark.parametrize("truth", ["2", r"\frac{x^2-1}{x-1}"])
def test_hostile_answers_are_graded_or_killed_and_the_rest_goes_on(truth):
    with Pool(2, timeout_s=1.0, memory_mb=1024, preload=["math"]) as pool:
        hostile = pool.submit([Task("math", response, truth) for response in HOSTILE])
        between = pool.submit([Task("math", rf"\boxed{{{truth}}}", truth)] * 50)
        results = hostile.result(timeout=60)
        assert all(result.correct for result in between.result(timeout=10))
        assert sum(child.memory_info().rss for child in children()) < 2 * 1024 * 2**20
    assert not any(result.correct for result in results)
    # Whatever an answer holds, the outcome is one that names it, never a crash of the reward function.
    crashed = [i for i, v in enumerate(results) if v.outcome is Outcome.ERROR and "MB" not in v.detail]
    assert crashed == []
