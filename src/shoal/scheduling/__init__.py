"""Pure policies of scheduling: machines and functions without clock, dice or sockets.

Purpose: every decision about who runs where. Read `events` first, then `local_scheduler`.

Design: `LocalScheduler` is the machine of one node; `request_queue` and `worker_pool` keep its state, `grant_policy` decides,
`explanation` tells users why they wait. `node.io` is the shell that performs the effects. `forwarding` takes what a node cannot serve to others;
`node_policy` says which others, for the GCS.

How to extend: see each module.

What it does not do: anything to the world.
"""
