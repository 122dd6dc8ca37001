"""The Global Control Store: what the cluster knows of nodes, jobs, actors, functions, keys and traces.

Purpose: everything else may restart and read its state here; it may be killed itself and loses nothing (docs/ARCHITECTURE.md). Others come in
by one door, `client`.

Design: `shard` is a pure machine composed of `tables`, `node_table`, `actor_manager` and `global_scheduler`;
`storage` keeps rows; `io.server` is the process around it.

How to extend: see `shard` for calls and messages, `storage.backend` for another place to keep rows.

What it does not do: carry object values or single tasks; grant anything (the nodes do).
"""
