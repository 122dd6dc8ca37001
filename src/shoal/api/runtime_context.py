"""`get_runtime_context()`: who and where the caller is."""

from __future__ import annotations

import os
from typing import Any

from shoal.api.environments import inherited_environment
from shoal.api.scheduling_strategies import current_group
from shoal.protocol.resources import to_floats
from shoal.runtime import core

FIRST_INCARNATION = 1  #: an actor's, before any restart


class RuntimeContext:
    """Ids, names and resources of the task, actor or driver that asks. Ids are hex strings; None where there is none."""

    def get_job_id(self) -> str:
        """The program this process works for."""
        return core.current().job_id.hex()

    def get_node_id(self) -> str:
        """The node this process is on."""
        return core.current().node_id.hex()

    def get_worker_id(self) -> str:
        """This process."""
        return core.current().worker_id.hex()

    def get_task_id(self) -> str | None:
        """The running task; None in a driver."""
        task = core.running_task.get()
        return task.task_id.hex() if task is not None else None

    def get_task_name(self) -> str | None:
        """The running task's name."""
        task = core.running_task.get()
        return task.name if task is not None else None

    def get_task_function_name(self) -> str | None:
        """The function or method that runs, whatever name the task was given."""
        task = core.running_task.get()
        if task is None or task.job is None:
            return self.get_task_name()
        template = task.job.template
        if template.is_call:
            return f"{self._spec().class_name}.{template.wire.method}"
        return str(getattr(template.function, "__qualname__", task.name))

    def get_actor_id(self) -> str | None:
        """The actor that runs this method; None outside of actors."""
        task = core.running_task.get()
        return task.actor_id.hex() if task is not None and task.actor_id else None

    def get_actor_name(self) -> str | None:
        """The actor's name; empty if it has none."""
        spec = self._spec()
        return spec.name if spec is not None else None

    def get_placement_group_id(self) -> str | None:
        """The placement group in which the caller runs; None outside of groups."""
        group = current_group()
        return group["group_id"].hex() if group else None

    def get_assigned_resources(self) -> dict[str, float]:
        """What the running task or actor was given."""
        task = core.running_task.get()
        return to_floats(task.lease.started.demand) if task is not None and task.lease is not None else {}

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """Ids of accelerators by resource."""
        task = core.running_task.get()
        assigned = task.assigned if task is not None else {}
        return {"GPU": [], **{name: [str(number) for number in numbers] for name, numbers in assigned.items()}}

    def get_runtime_env_string(self) -> str:
        """The runtime environment as JSON."""
        import json

        return json.dumps(self.runtime_env)

    def is_canceled(self) -> bool:
        """Whether somebody asked to cancel the running call (threaded actors)."""
        task = core.running_task.get()
        return bool(task is not None and task.job is not None and task.job.cancelled)

    @property
    def runtime_env(self) -> dict[str, Any]:
        """The runtime environment of the running task or actor, or of the program."""
        inherited = inherited_environment(core.current())
        return {name: value for name, value in inherited.items() if name != "import_path"}

    @property
    def namespace(self) -> str:
        """Where names of actors are looked up: the job's, also in an actor that is itself named elsewhere."""
        return core.current().namespace

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether this actor has been restarted."""
        executor = core.current().executor
        return bool(
            executor is not None and executor.actor is not None and executor.actor.incarnation > FIRST_INCARNATION
        )

    @property
    def current_actor(self) -> Any:
        """A handle of the actor that runs this method."""
        from shoal.api.actors import _handle_of_spec

        spec = self._spec()
        if spec is None:
            raise RuntimeError("current_actor is for methods of actors")
        return _handle_of_spec(spec, strong=True)

    @property
    def gcs_address(self) -> str:
        """Where the GCS listens: "HOST:PORT" in a cluster, else the path of a socket."""
        runtime = core.current()
        return str(runtime.config.get("cluster_address") or runtime.session_dir + "/gcs.sock")

    @property
    def should_capture_child_tasks_in_placement_group(self) -> bool:
        """Whether what the caller starts goes into its placement group."""
        return bool(current_group().get("capture"))

    def get_node_labels(self) -> dict[str, str]:
        """The labels that this node was started with."""
        return dict(core.current().config.get("options", {}).get("labels") or {})

    def get_session_name(self) -> str:
        """The session's name: that of its folder."""
        return os.path.basename(core.current().session_dir)

    def get_temp_dir(self) -> str:
        """Where the folders of sessions are."""
        return os.path.dirname(core.current().session_dir)

    job_id = property(get_job_id)
    node_id = property(get_node_id)
    task_id = property(get_task_id)
    actor_id = property(get_actor_id)
    worker_id = property(get_worker_id)

    def get(self) -> dict[str, Any]:
        """Job, node and task ids as a dict."""
        return {
            "job_id": self.get_job_id(),
            "node_id": self.get_node_id(),
            "task_id": self.get_task_id(),
            "actor_id": self.get_actor_id(),
        }

    def _spec(self) -> Any:
        executor = core.current().executor
        return executor.actor.spec if executor is not None and executor.actor is not None else None


def get_runtime_context() -> RuntimeContext:
    """Who and where the caller is."""
    core.current()
    return RuntimeContext()
