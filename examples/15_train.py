"""Distributed training: the program of docs/guide/15_train.md. It needs `pip install 'shoal[train]'`."""

import tempfile
from pathlib import Path

import numpy as np
import torch

import shoal
from shoal import train

shoal.init(num_cpus=4, log_to_driver=False)
temporary = tempfile.TemporaryDirectory(prefix="shoal-example-")
folder = Path(temporary.name)
x = np.linspace(-1, 1, 256, dtype=np.float32).reshape(-1, 1)


# The loop runs in every worker; torch.distributed connects them, `prepare_model` averages their gradients.
def loop(config):
    shard = train.get_dataset_shard("train")
    inputs, targets = torch.tensor(np.array(shard["x"])), torch.tensor(np.array(shard["y"]))
    model = train.prepare_model(torch.nn.Linear(1, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=config["rate"])
    first = 0
    if (checkpoint := train.get_checkpoint()) is not None:  # after a restart
        with checkpoint.as_directory() as path:
            first, weights = torch.load(Path(path, "state.pt"))
            model.load_state_dict(weights)
    for epoch in range(first, 20):
        loss = (model(inputs) - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        saved = None
        if train.get_context().get_world_rank() == 0:
            path = folder / "newest"
            path.mkdir(exist_ok=True)
            torch.save((epoch + 1, model.state_dict()), path / "state.pt")
            saved = train.Checkpoint.from_directory(path)
        train.report({"loss": loss.item()}, checkpoint=saved)


result = train.TorchTrainer(
    loop,
    train_loop_config={"rate": 0.3},
    scaling_config=train.ScalingConfig(num_workers=2),
    run_config=train.RunConfig(name="line", storage_path=str(folder), max_failures=2),
    datasets={"train": {"x": x, "y": 3 * x - 1}},
).fit()
print("epochs:", len(result.history), "- loss below 0.1:", result.metrics["loss"] < 0.1)


# Collectives for actors of your own: arrays and tensors, in place, in the group that the driver made.
@shoal.remote
class Member:
    def total(self, number):
        values = np.full(3, float(number))
        train.collective.allreduce(values)
        return values.tolist()


members = [Member.remote() for _ in range(3)]
train.collective.create_group(members)
print("allreduce:", shoal.get([member.total.remote(number) for number, member in enumerate(members)])[0])
for member in members:
    shoal.kill(member)


# A parameter server: the weights lie in two actors; each worker pushes a gradient and has the new weights.
@shoal.remote
def gradient(server, weights, inputs, targets):
    slope, offset = weights
    error = slope * inputs + offset - targets
    found = np.array([(2 * error * inputs).mean(), (2 * error).mean()], dtype=np.float32)
    return server.push(found)


server = train.ParameterServer(np.zeros(2, np.float32), shards=2, rule=lambda: train.Momentum(0.1, 0.5))
weights = server.pull()
for step in range(40):
    part = slice(step % 4, None, 4)
    weights = shoal.get(gradient.remote(server, weights, x[part], 3 * x[part] - 1))
print("learned:", np.round(weights).astype(int).tolist())


# The same for a torch model: gradients leave while backward goes on; `step` waits for the other workers and takes the new weights over.
@shoal.remote
def served_loop(server, worker, workers, inputs, targets):
    served = train.ServedModel(torch.nn.Linear(1, 1), server, worker, workers)
    for _ in range(40):
        (served.model(inputs) - targets).square().mean().backward()
        served.step()
    return [round(each.item()) for each in served.model.parameters()]


inputs = torch.tensor(x).reshape(-1, 1)
server = train.serve_model(torch.nn.Linear(1, 1), shards=2, rule=lambda: train.Momentum(0.1, 0.5))
parts = [inputs[worker::2] for worker in range(2)]
loops = [served_loop.remote(server, worker, 2, part, 3 * part - 1) for worker, part in enumerate(parts)]
print("learned by each:", shoal.get(loops))

shoal.shutdown()
temporary.cleanup()
