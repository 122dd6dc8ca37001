"""Errors, retries, time-outs and cancelling: what happens when something goes wrong, and what you can do about it."""

import os
import tempfile
import time
from pathlib import Path

import shoal
from shoal.exceptions import GetTimeoutError, TaskCancelledError, TaskError, WorkerCrashedError

shoal.init(num_cpus=2)


# An exception in a task comes out of `get`. It is a TaskError, and also an instance of the class that was raised.
@shoal.remote
def parse(text):
    return int(text)


try:
    shoal.get(parse.remote("twelve"))
except ValueError as error:
    print("caught as ValueError:", error.cause)
    print("and as TaskError:", isinstance(error, TaskError))


# A task whose argument failed does not run; it fails with the same error.
@shoal.remote
def double(number):
    return 2 * number


try:
    shoal.get(double.remote(parse.remote("thirteen")))
except ValueError as error:
    print("through two tasks:", error.cause)

# Exceptions are part of the program, so they are not retried, unless you say which ones are worth another try.
attempts = Path(tempfile.mkdtemp()) / "attempts"


@shoal.remote(max_retries=5, retry_exceptions=[ConnectionError])
def flaky():
    with attempts.open("a") as file:
        file.write("x")
    if len(attempts.read_text()) < 3:
        raise ConnectionError("the server is busy")
    return "done"


print("flaky:", shoal.get(flaky.remote()), "after", len(attempts.read_text()), "attempts")


# A process that dies is another matter: its task is run again, 3 times if nothing else was asked for.
@shoal.remote(max_retries=0)
def die():
    os.kill(os.getpid(), 9)


try:
    shoal.get(die.remote())
except WorkerCrashedError as error:
    print("crashed:", "SIGKILL" in str(error))


# `get` with a time-out gives up waiting; the task goes on. `cancel` ends it: KeyboardInterrupt is raised inside.
@shoal.remote
def wait_long():
    time.sleep(600)


ref = wait_long.remote()
try:
    shoal.get(ref, timeout=0.2)
except GetTimeoutError:
    print("not ready after 0.2 s")
shoal.cancel(ref)
try:
    shoal.get(ref, timeout=10)
except TaskCancelledError:
    print("cancelled")


# Actors can be restarted: the constructor runs again (so state that matters must be stored elsewhere), and calls that were lost are repeated.
@shoal.remote(max_restarts=1, max_task_retries=1)
class Notebook:
    def __init__(self, path):
        self.path = path

    def write(self, line):
        with open(self.path, "a") as file:
            file.write(line + "\n")

    def read(self):
        return Path(self.path).read_text().split()

    def crash_once(self):
        if "crashed" not in self.read():
            self.write("crashed")
            os._exit(1)
        return "survived"


notebook = Notebook.remote(str(attempts.with_name("notebook")))
shoal.get(notebook.write.remote("hello"))
print("notebook:", shoal.get(notebook.crash_once.remote()), shoal.get(notebook.read.remote()))

shoal.shutdown()
