"""The node daemon: one process a node, with the local scheduler's shell, the object directory and the store's table.

Purpose: everything that the processes of one node need to agree on: who works for whom, who holds which object, where it lies.

Design: pure machines here (`object_directory`, `store_table`, `memory_policy`; the scheduler is `shoal.scheduling`), all effects under `io`.

What it does not do: run user code, or take part in single tasks.
"""
