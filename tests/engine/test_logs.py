"""What workers print reaches the driver's terminal: whole, named, in order, to the last line."""

from __future__ import annotations

import re

from tests.engine.driver_process import run

PREFIX = re.compile(r"^\((?P<name>.*?) pid=(?P<pid>\d+)\) (?P<text>.*)$")


def lines_of(text: str) -> list[tuple[str, str]]:
    """(name, text) of each line of a worker."""
    return [(found["name"], found["text"]) for line in text.splitlines() if (found := PREFIX.match(line))]


def test_every_way_to_print() -> None:
    out, err = run("""
session()
@shoal.remote
def talk():
    print("a", "b", sep="-")
    print("to stderr", file=sys.stderr)
    os.write(1, b"by descriptor\\n")
    sys.stdout.write("in ")
    sys.stdout.write("parts\\n")
    thread = threading.Thread(target=print, args=("from a thread",))
    thread.start()
    thread.join()
    os.system("echo of a child")
    print("two\\nlines")
    print("not \\ud800 text, \\u00e4 \\U0001f40b")
    sys.stdout.writelines(["x\\n", "y\\n"])
    print("without an end", end="")
@shoal.remote
class Plain:
    def say(self):
        print("mine")
        print("after", end="")
@shoal.remote
class Named:
    def __init__(self, number):
        self.number = number
    def __repr__(self):
        return f"Named<{self.number}>"
    def say(self):
        print("I am", self.number)
@shoal.remote(name="given")
def other():
    print("other")
shoal.get(talk.remote())
shoal.get([Plain.remote().say.remote(), Named.remote(7).say.remote()])
shoal.get(other.remote())
print("driver's own")
""")
    assert "driver's own" in out.splitlines()
    lines = lines_of(out)
    talk = ["a-b", "by descriptor", "in parts", "from a thread", "of a child", "two", "lines"]
    talk += ["not \\ud800 text, \u00e4 \U0001f40b", "x", "y", "without an end"]
    assert [text for name, text in lines if name == "talk"] == talk
    assert ("Plain", "mine") in lines and ("Plain", "after") in lines
    assert ("Named<7>", "I am 7") in lines
    assert any(text == "other" for _, text in lines)
    assert ("talk", "to stderr") in lines_of(err)


def test_last_words() -> None:
    out, _ = run("""
session()
@shoal.remote(max_retries=0)
def crash(how):
    print("last words of", how)
    sys.stdout.write("the unfinished line of " + how)
    sys.stdout.flush()
    if how == "exit":
        sys.exit(1)
    os._exit(1) if how == "os._exit" else os.kill(os.getpid(), signal.SIGKILL)
for how in ("os._exit", "kill", "exit"):
    try:
        shoal.get(crash.remote(how), timeout=60)
    except shoal.exceptions.WorkerCrashedError:
        pass
@shoal.remote
def last(number):
    print("the very last line", number)
shoal.get([last.remote(number) for number in range(50)], timeout=60)
# and at once out
""")
    texts = [text for _, text in lines_of(out)]
    for how in ("os._exit", "kill", "exit"):
        assert f"last words of {how}" in texts
        assert f"the unfinished line of {how}" in texts
    assert {f"the very last line {number}" for number in range(50)} <= set(texts)


def test_a_flood_is_whole_and_in_order() -> None:
    out, err = run(
        """
session()
@shoal.remote
def flood(who, count):
    begun = time.perf_counter()
    for number in range(count):
        print(who, number)
    return time.perf_counter() - begun
print("TOOK", *shoal.get([flood.remote("a", 50_000), flood.remote("b", 50_000)], timeout=60), file=sys.stderr)
""",
        timeout_s=90,
    )
    texts = [text for _, text in lines_of(out)]
    for who in "ab":
        assert [text for text in texts if text.startswith(who)] == [f"{who} {number}" for number in range(50_000)]
    assert max(float(word) for word in err.split("TOOK")[1].split()[:2]) < 60


def test_repeated_lines_are_counted() -> None:
    script = """
session(num_cpus=4)
@shoal.remote(num_cpus=0)
class Twin:
    def say(self):
        print("the same")
        print("own", os.getpid())
twins = [Twin.remote() for _ in range(4)]
for twin in twins:
    shoal.get(twin.say.remote())
    time.sleep(0.05)
"""
    out, _ = run(script)
    texts = [text for _, text in lines_of(out)]
    assert [text for text in texts if "the same" in text] == [
        "the same",
        "the same [repeated 3 times by other workers]",
    ]
    assert sum(text.startswith("own") for text in texts) == 4
    out, _ = run(script, SHOAL_DEDUP_LOGS="0")
    assert [text for _, text in lines_of(out)].count("the same") == 4


def test_log_to_driver_off() -> None:
    out, err = run("""
session(log_to_driver=False)
@shoal.remote
def talk():
    print("nobody reads this")
    print("nor this", file=sys.stderr)
shoal.get(talk.remote())
""")
    assert lines_of(out) == lines_of(err) == []


def test_errors_that_nobody_asked_for_are_told_once() -> None:
    script = """
session(num_cpus=1)
@shoal.remote
def fail(text):
    raise ValueError(text)
@shoal.remote(num_returns=0)
def fail_without_results():
    raise ValueError("without results")
@shoal.remote
def use(value):
    pass
@shoal.remote
class Failing:
    def fail(self):
        raise KeyError("of an actor")
    def succeed(self):
        pass
def seen(ref):
    try:
        shoal.get(ref, timeout=60)
    except ValueError:
        pass
fail.remote("never asked for")
fail_without_results.remote()
actor = Failing.remote()
actor.fail.remote()
shoal.get(actor.succeed.remote())
ref = fail.remote("asked for")
seen(ref)
seen(use.remote(fail.remote("of an argument")))
kept = fail.remote("kept")
waited = fail.remote("waited for")
shoal.wait([waited, kept], num_returns=2, timeout=60)
del ref, waited
shoal.get(one.remote())
time.sleep(0.3)
"""
    _, err = run(script)
    assert err.count("ValueError: never asked for") >= 1 and err.count("Unhandled error") == 4, err
    for text in ("without results", "of an actor", "waited for"):
        assert text in err
    for text in ("asked for\n\n", "of an argument", "kept"):
        assert text not in err
    for name in ("SHOAL_IGNORE_UNHANDLED_ERRORS", "RAY_IGNORE_UNHANDLED_ERRORS"):
        _, err = run(script, **{name: "1"})
        assert "Unhandled" not in err


def test_a_closed_terminal_ends_nothing() -> None:
    run("""
session()
@shoal.remote
def talk():
    for number in range(100):
        print("line", number)
    return number
sys.stdout.close()
sys.stderr.close()
assert shoal.get(talk.remote(), timeout=60) == 99
time.sleep(0.1)
assert shoal.get(talk.remote(), timeout=60) == 99
""")


def test_errors_alike_that_nobody_asked_for_are_counted() -> None:
    script = """
session(num_cpus=1)
@shoal.remote
def fail(number):
    raise ValueError(f"no {number}")
for number in range(10):
    shoal.wait([fail.remote(number)], timeout=60)
shoal.get(one.remote())
shoal.shutdown()
"""
    _, err = run(script)
    assert err.count("Unhandled error in fail") == 3 and err.count("More like it are only counted") == 1, err
    assert err.count("7 more unhandled errors like TaskError(ValueError) in fail were not shown.") == 1, err
