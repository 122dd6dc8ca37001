"""The command `shoal`.

Purpose: what one wants from a shell: start and end clusters, see what runs, try it, measure it.

Design: a click group; each command's module is loaded when it is called, so that `shoal version` costs no more than click itself. Commands
that look at a running session talk to its daemon through `launch.observer` and start nothing.

How to extend: write a module with a function that does the work, and a few lines here that name its options.

What it does not do: anything that the API cannot do as well.
"""

from __future__ import annotations

from typing import Any

import click

from shoal.cli.amounts import bytes_of, labels_of, resources_of


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Shoal: remote functions, actors and a shared-memory object store for Python."""


def _require_rich() -> None:
    """Tables and progress are drawn by rich, which with what it needs is as large as the rest of the install."""
    from importlib.util import find_spec

    if find_spec("rich") is None:
        raise click.ClickException("this command draws with rich, which is not installed: pip install 'shoal[cli]'")


@main.command()
def version() -> None:
    """Print the version."""
    import shoal

    click.echo(f"shoal {shoal.__version__}")


@main.command()
@click.option("--head", is_flag=True, help="Begin a cluster.")
@click.option(
    "--address",
    metavar="HOST:PORT",
    help="Join the cluster at this address, or at the first that answers of several with commas between.",
)
@click.option(
    "--host",
    metavar="ADDRESS",
    help="Where this node listens: an address of this machine that the other nodes reach. Default: 127.0.0.1 for a head, "
    "else the one that leads to the head.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Where others join (--head). Default: 6480; 0 for any that is free."
)
@click.option(
    "--node-port",
    type=click.IntRange(0, 65535),
    default=0,
    help="For what nodes say to each other. Default: any that is free.",
)
@click.option("--num-cpus", type=click.FloatRange(min=0), help="Default: this machine's.")
@click.option("--num-gpus", type=click.FloatRange(min=0), help="Default: this machine's.")
@click.option(
    "--memory", callback=bytes_of, metavar="BYTES", help="What tasks can ask for: 8000000000, 8e9, 8GB, 8GiB."
)
@click.option(
    "--object-store-memory", callback=bytes_of, metavar="BYTES", help="2e9, 2GB, 2GiB. Default: 30% of the memory."
)
@click.option("--resources", callback=resources_of, metavar="NAME=NUMBER,...", help="Custom resources; or JSON.")
@click.option(
    "--labels", callback=labels_of, metavar="NAME=TEXT,...", help="Labels that tasks can choose nodes by; or JSON."
)
@click.option("--name", default="", help="What people call this node. Default: its address.")
@click.option(
    "--token-file",
    metavar="PATH",
    help="The cluster's token. Default: $SHOAL_TOKEN_FILE, or ~/.shoal/token; a head makes it.",
)
@click.option("--gcs-shards", type=click.IntRange(min=1), help="Processes of the GCS (--head).")
@click.option(
    "--storage",
    metavar="NAME",
    help="Where the GCS keeps its tables (--head): sqlite, sqlite:PATH, redis://..., memory.",
)
@click.option(
    "--tls", is_flag=True, help="Encrypt what nodes say to each other; all nodes or none. Needs `shoal certificates`."
)
@click.option(
    "--tls-folder", metavar="PATH", help="The certificates; implies --tls. Default: $SHOAL_TLS_FOLDER, or ~/.shoal/tls."
)
@click.option(
    "--drain-grace",
    "drain_grace_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="What SIGTERM (a preemption notice) leaves a node for moving its work elsewhere; a second one ends it. Default: 30.",
)
@click.option(
    "--gcs-reconnect-timeout",
    "gcs_reconnect_timeout_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="A node that joined ends when its head's machine is silent for so long; 0: never. Default: 60; 600 with "
    "--storage=sqlite:PATH, never with redis://...",
)
@click.option("--block", is_flag=True, help="Stay in the foreground; the node ends with this command.")
def start(**given: Any) -> None:
    """Start a node on this machine that stays: the head of a new cluster (--head), or one that joins (--address)."""
    from shoal.cli.start import StartRequest, run_start

    run_start(StartRequest(**given))


@main.command()
@click.option("--folder", metavar="PATH", help="Where. Default: $SHOAL_TLS_FOLDER, or ~/.shoal/tls.")
def certificates(folder: str | None) -> None:
    """Make what `shoal start --tls` needs, once for a cluster; copy the folder to all its machines."""
    from shoal.system.tls_files import make_tls_files, tls_folder

    folder = folder or tls_folder()
    try:
        make_tls_files(folder)
    except (OSError, RuntimeError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(
        f"Made an authority for one cluster and its nodes' certificate in {folder}.\nOn other machines: scp -rp {folder} MACHINE:{folder}"
    )


@main.command()
@click.option("--address", metavar="HOST:PORT", help="Only those of this cluster.")
@click.option("--force", is_flag=True, help="Kill them.")
def stop(address: str | None, force: bool) -> None:
    """End the nodes that `shoal start` has started on this machine."""
    from shoal.cli.stop import run_stop

    run_stop(address, force)


@main.command()
@click.argument("node")
@click.option("--address", metavar="HOST:PORT", help="Of the cluster.")
@click.option(
    "--deadline",
    "deadline_s",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    help="Seconds; then it leaves all the same.",
)
@click.option("--reason", default="an operator asked for it", show_default=True, help="Shown where the node is missed.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until it has left.")
def drain(node: str, address: str | None, deadline_s: float, reason: str, wait: bool) -> None:
    """Let NODE (its name, its address, or the beginning of its id) leave the cluster when nobody needs it any more."""
    from shoal.cli.stop import run_drain

    run_drain(node, address, deadline_s, reason, wait)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
@click.option("--address", metavar="HOST:PORT", help="Only this cluster.")
def status(as_json: bool, address: str | None) -> None:
    """Show what runs on this machine and the clusters it belongs to: nodes, resources, who waits and why.

    The exit code is 1 when there is nothing.
    """
    from shoal.cli.status import show_status

    raise SystemExit(show_status(as_json, address))


@main.command()
@click.option("--num-cpus", type=click.IntRange(min=1), default=None, help="Logical CPUs; this machine's by default.")
def demo(num_cpus: int | None) -> None:
    """A tour in ten seconds: tasks, actors, objects, errors."""
    _require_rich()
    from shoal.cli.demo import run_demo

    run_demo(num_cpus)


@main.command()
@click.option(
    "--seconds", type=click.FloatRange(min=0.05), default=1.0, show_default=True, help="Time for each figure."
)
@click.option("--num-cpus", type=click.IntRange(min=1), default=None, help="Logical CPUs; this machine's by default.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def microbenchmark(seconds: float, num_cpus: int | None, as_json: bool) -> None:
    """Measure this machine: tasks, actor calls, objects."""
    _require_rich()
    from shoal.cli.microbenchmark import run_microbenchmark

    run_microbenchmark(seconds, num_cpus, as_json)
