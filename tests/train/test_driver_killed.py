"""A training's driver is killed with -9 in the middle: nothing is left running, and `restore` goes on from the last checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from shoal import train
from shoal.tune.checkpoint import MANIFEST

PATIENCE_S = 60
TOKEN = "SHOAL_TEST_DRIVER"


def loop(config: dict[str, Any]) -> None:
    """Counts to 8, a checkpoint each; waits at 4 until it is allowed to go on."""
    begin, checkpoint = 0, train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            begin = json.loads(Path(folder, "state.json").read_text()) + 1
    for step in range(begin, 8):
        while step == 4 and not Path(config["go"]).exists():
            time.sleep(0.01)
        own = Path(config["go"]).with_name("own")
        own.mkdir(exist_ok=True)
        (own / "state.json").write_text(json.dumps(step))
        train.report({"step": step, "began_at": begin}, checkpoint=train.Checkpoint.from_directory(own))


def settings(folder: Path) -> dict[str, Any]:
    return {"train_loop_config": {"go": str(folder / "go")}, "scaling_config": train.ScalingConfig(num_workers=1)}


def processes_of(token: str) -> list[psutil.Process]:
    """Those that have inherited the token and are no zombies."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(TOKEN) == token and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_run_whose_driver_is_killed_goes_on_from_its_last_checkpoint(
    shoal_shared: ModuleType, tmp_path: Path
) -> None:
    program = (
        "import sys, types; from pathlib import Path; import shoal; from shoal import train\n"
        "sys.modules['torch'] = types.ModuleType('torch')\n"  # this loop has no need of it, and it takes seconds to import
        "from tests.train.test_driver_killed import loop, settings\n"
        "folder = Path(sys.argv[1]); shoal.init(num_cpus=1, log_to_driver=False)\n"
        "run = train.RunConfig(name='run', storage_path=str(folder))\n"
        "train.TorchTrainer(loop, run_config=run, **settings(folder)).fit()\n"
    )
    pytest.importorskip("torch")
    run, token = tmp_path / "run", str(tmp_path)
    driver = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env={**os.environ, TOKEN: token})
    deadline = time.monotonic() + PATIENCE_S
    while not (run / "checkpoint_000003" / MANIFEST).exists():
        assert time.monotonic() < deadline and driver.poll() is None, "the training did not come to step 3"
        time.sleep(0.02)
    assert len(processes_of(token)) > 1, "its driver, node and worker"
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    while left := processes_of(token):
        assert time.monotonic() < deadline, f"left running: {[process.cmdline() for process in left]}"
        time.sleep(0.05)
    (tmp_path / "go").touch()
    result = train.TorchTrainer.restore(str(run), loop, **settings(tmp_path)).fit()
    assert [row["step"] for row in result.history] == list(range(8)), "nothing is lost, nothing done twice"
    assert [row["began_at"] for row in result.history] == [0] * 4 + [4] * 4
