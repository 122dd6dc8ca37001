"""The command `shoal`.

Purpose: what one wants from a shell: see what runs, try it, measure it.

Design: a click group; each command's module is loaded when it is called, so that `shoal version` costs no more than click itself. Commands
that look at a running session talk to its daemon through `observer` and start nothing.

How to extend: write a module with a function that does the work, and a few lines here that name its options.

What it does not do: anything that the API cannot do as well.
"""

from __future__ import annotations

import click


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
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
def status(as_json: bool) -> None:
    """Show your sessions on this machine. The exit code is 1 when there are none."""
    _require_rich()
    from shoal.cli.status import show_status

    raise SystemExit(show_status(as_json))


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
