"""The program of the guide's page 13: what survives, and what to say so that it does."""

import os
import signal
import tempfile
import threading
import time

import shoal

shoal.init(num_cpus=2, log_to_driver=False)


# A task whose process dies is run again, three times by default.
@shoal.remote
def fragile(token):
    if os.path.exists(token):
        os.unlink(token)  # only the first attempt finds it
        os.kill(os.getpid(), signal.SIGKILL)
    return "done at the second attempt"


token = tempfile.mkstemp()[1]
print(shoal.get(fragile.remote(token)))


# Refs outlive the process that made them.
@shoal.remote
def slowly(value):
    time.sleep(0.3)
    return value + 1


@shoal.remote
class Planner:
    def plan(self):
        first = slowly.remote(0)
        return [first, slowly.remote(first)]

    def process(self):
        return os.getpid()


planner = Planner.remote()
first, second = shoal.get(planner.plan.remote())
os.kill(shoal.get(planner.process.remote()), signal.SIGKILL)
print("planned by the dead:", shoal.get([first, second]))


# An actor that takes checkpoints: every 100 calls its state is kept, and the calls since then are recorded.
@shoal.remote(checkpoint_interval=100)
class Account:
    def __init__(self, owner):
        self.owner = owner
        self.entries = []

    def book(self, amount):
        self.entries.append(amount)
        return sum(self.entries)

    # It changes nothing, so it is neither recorded nor replayed.
    @shoal.method(read_only=True)
    def process(self):
        return os.getpid()


account = Account.remote("Ada")
balances = [account.book.remote(10) for _ in range(250)]
os.kill(shoal.get(account.process.remote()), signal.SIGKILL)
balances += [account.book.remote(10) for _ in range(250)]
print("every call counted once:", shoal.get(balances) == list(range(10, 5010, 10)))


# Calls between such actors have one effect too, whichever of them dies.
@shoal.remote(checkpoint_interval=100)
class Bank:
    def __init__(self, accounts):
        self.accounts = accounts

    def transfer(self, source, target, amount):
        shoal.get([self.accounts[source].book.remote(-amount), self.accounts[target].book.remote(amount)])
        return amount

    @shoal.method(read_only=True)
    def process(self):
        return os.getpid()


accounts = [Account.remote(name) for name in ("Grace", "Alan")]
bank = Bank.remote(accounts)
transfers = [bank.transfer.remote(0, 1, 1) for _ in range(200)]
for victim in (bank, accounts[0], bank, accounts[1]):
    os.kill(shoal.get(victim.process.remote()), signal.SIGKILL)
shoal.get(transfers)
print("balances:", shoal.get([account.book.remote(0) for account in accounts]))


# A state that cannot be pickled as it is: say what belongs to it. The constructor runs again before `load_checkpoint`.
@shoal.remote(checkpoint_seconds=0.5)
class Simulation:
    def __init__(self):
        self.lock = threading.Lock()  # nobody can pickle this
        self.step_no = 0

    def step(self):
        self.step_no += 1
        return self.step_no

    def save_checkpoint(self):
        return self.step_no

    def load_checkpoint(self, state):
        self.step_no = state

    @shoal.method(read_only=True)
    def process(self):
        return os.getpid()


simulation = Simulation.remote()
shoal.get([simulation.step.remote() for _ in range(41)])
os.kill(shoal.get(simulation.process.remote()), signal.SIGKILL)
print("step", shoal.get(simulation.step.remote()))

# What could not be replayed is refused where it is written.
try:

    @shoal.remote(checkpoint_interval=10)
    class Waiter:
        async def wait(self):
            pass

except ValueError as error:
    print(error)

shoal.shutdown()
