"""A policy served inside the loop: an actor against the same model behind a REST server (paper table 3).

    python benchmarks/rl_serving.py [--seconds 4] [--clients 2]

A client sends batches of 64 states of 4 kB (float32) and of 100 kB, and waits for the actions. Ours is `shoal.rl.PolicyServer`, called from a
task; the other is FastAPI on uvicorn, asked by HTTP with the raw bytes of the batch, one connection a client kept open. The model is the same: a
matrix product to 8 actions. One JSON line: states per second of both. Without fastapi and uvicorn that part is left out, and the line says so.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np

BATCH = 64
STATE_BYTES = (4_000, 100_000)
ACTIONS = 8


def make_model(state_bytes: int) -> Any:
    """The model: one product."""
    weights = np.random.default_rng(0).normal(size=(state_bytes // 4, ACTIONS)).astype(np.float32)
    return lambda states: states @ weights


def rest_server(port: int, state_bytes: int) -> None:
    """Run in a process of its own."""
    import uvicorn
    from fastapi import FastAPI, Request, Response

    application, model = FastAPI(), make_model(state_bytes)

    async def act(
        request,
    ):  # annotated below: annotations are text in this file, and FastAPI could not look these names up
        states = np.frombuffer(await request.body(), np.float32).reshape(-1, state_bytes // 4)
        return Response(model(states).tobytes(), media_type="application/octet-stream")

    act.__annotations__ = {"request": Request}
    application.post("/act")(act)
    uvicorn.run(application, host="127.0.0.1", port=port, log_level="error")


def rest_client(port: int, state_bytes: int, seconds: float) -> float:
    """States per second of one client."""
    states = np.random.default_rng(1).normal(size=(BATCH, state_bytes // 4)).astype(np.float32)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        connection.request("POST", "/act", states.tobytes())
        response = connection.getresponse()
        answer = response.read()
        assert response.status == 200, answer
        assert len(np.frombuffer(answer, np.float32).reshape(-1, ACTIONS)) == BATCH
        count += BATCH
    return count / (time.perf_counter() - began)


def with_rest(state_bytes: int, seconds: float, clients: int) -> float:
    """States per second of all clients; each is a process, as our tasks are."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, __file__, "--server", str(port), "--state-bytes", str(state_bytes)])
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline or server.poll() is not None:
                    raise RuntimeError("the REST server did not begin") from None
                time.sleep(0.05)
        rest_client(port, state_bytes, 0.3)
        command = [
            sys.executable,
            __file__,
            "--client",
            str(port),
            "--state-bytes",
            str(state_bytes),
            "--seconds",
            str(seconds),
        ]
        asked = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(clients)]
        return sum(float(one.communicate(timeout=seconds + 60)[0]) for one in asked)
    finally:
        server.kill()
        server.wait()


def with_shoal(state_bytes: int, seconds: float, clients: int) -> float:
    """States per second of all clients, each a task, in a session of its own."""
    import shoal

    shoal.init(num_cpus=clients, log_to_driver=False)
    found = served_by_shoal(state_bytes, seconds, clients)
    shoal.shutdown()
    return found


def served_by_shoal(state_bytes: int, seconds: float, clients: int) -> float:
    """The same in the session that there is."""
    import shoal
    from shoal import rl

    server = rl.PolicyServer.remote(lambda: make_model(state_bytes), rows_max=4 * BATCH)

    @shoal.remote
    def ask(server: Any, seconds: float) -> float:
        states = np.random.default_rng(1).normal(size=(BATCH, state_bytes // 4)).astype(np.float32)
        shoal.get(server.act.remote(states))
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            assert len(shoal.get(server.act.remote(states))) == BATCH
            count += BATCH
        return count / (time.perf_counter() - began)

    shoal.get([ask.remote(server, 0.3) for _ in range(clients)])
    found = shoal.get([ask.remote(server, seconds) for _ in range(clients)])
    shoal.kill(server)
    return float(sum(found))


def main() -> None:
    """Measure both, alternately."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each program and size")
    parser.add_argument("--clients", type=int, default=2)
    for hidden in ("--server", "--client", "--state-bytes"):
        parser.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.server:
        rest_server(options.server, options.state_bytes)
        return
    if options.client:
        print(rest_client(options.client, options.state_bytes, options.seconds))
        return
    has_rest = all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn"))
    line: dict[str, Any] = {
        "benchmark": "rl_serving",
        "clients": options.clients,
        "batch": BATCH,
        "cpus": os.cpu_count(),
    }
    for state_bytes in STATE_BYTES:
        ours, theirs = [], []
        for _ in range(2):
            ours.append(with_shoal(state_bytes, options.seconds / 2, options.clients))
            if has_rest:
                theirs.append(with_rest(state_bytes, options.seconds / 2, options.clients))
        name = f"{state_bytes // 1000}_kB"
        line[f"shoal_states_s_{name}"] = round(float(np.mean(ours)))
        if has_rest:
            line[f"rest_states_s_{name}"] = round(float(np.mean(theirs)))
            line[f"times_rest_{name}"] = round(float(np.mean(ours) / np.mean(theirs)), 1)
    if not has_rest:
        line["rest_left_out"] = "fastapi and uvicorn are not installed (pip install 'shoal[bench]')"
    print(json.dumps(line))


if __name__ == "__main__":
    main()
