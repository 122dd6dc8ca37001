"""Reinforcement learning: the program of docs/guide/14_rl.md. It needs `pip install 'shoal[rl]'`."""

import tempfile
from pathlib import Path

import numpy as np

import shoal
from shoal import rl

shoal.init(num_cpus=2, log_to_driver=False)
temporary = tempfile.TemporaryDirectory(prefix="shoal-example-")
folder = Path(temporary.name)

# Evolution strategies: no gradients, no torch; every direction is a task, a tree of actors sums them up.
trainer = rl.EvolutionStrategies(rl.ESConfig("CartPole-v1", hidden=(16,), pairs=24, seed=1))
generations = 0
while generations < 60 and trainer.train().reward < 400:
    generations += 1
print("evolution balances the pole:", generations < 60)

# The state on disk is replaced atomically; a training that was killed goes on from it, exactly.
trainer.save(folder / "cartpole.state")
resumed = rl.EvolutionStrategies(rl.ESConfig("CartPole-v1", hidden=(16,), pairs=24, seed=1))
resumed.restore(folder / "cartpole.state")
print("resumed at the same generation:", resumed.generation == trainer.generation)

# PPO: players are actors with several environments each, the learner is one more; nobody waits for the slowest.
ppo = rl.PPO(rl.PPOConfig("CartPole-v1", players=2, environments=4, steps=128, seed=1))
result = ppo.train()
while result.update < 100 and not result.reward > 100:
    result = ppo.train()
print("PPO learns:", result.reward > 100)
ppo.close()


# An environment of your own is a function that makes one. What it raises names it, with the seed that shows it again.
def make_broken():
    import gymnasium

    class Broken(gymnasium.Wrapper):
        def step(self, action):
            raise RuntimeError("lost a wheel")

    return Broken(gymnasium.make("CartPole-v1"))


try:
    rl.EvolutionStrategies(rl.ESConfig(make_broken, hidden=(4,), pairs=2)).train()
except rl.EnvironmentFailed as error:
    print("make_broken" in str(error), "lost a wheel" in str(error))

# A policy served inside the loop: requests that come while the model computes are answered together.
server = rl.PolicyServer.remote(lambda: lambda states: states.sum(axis=1, keepdims=True))
answers = shoal.get([server.act.remote(np.full((1, 4), number)) for number in range(100)])
print(int(answers[25][0, 0]), shoal.get(server.statistics.remote())["rows"])

shoal.shutdown()
temporary.cleanup()
