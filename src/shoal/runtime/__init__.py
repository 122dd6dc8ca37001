"""The in-process side of driver and worker: submitting, executing, owning objects.

Reading order: `reactor` (who reads the sockets), `objects` (what a process knows of objects), `submitter` (leases and pushes),
`actor_calls`, `executor` (the worker's side), `core` (the `Runtime` that joins them: get, put) with `waiting`, `awaiting`, `stored` and
`exports` beside it, `session` and `worker` (the two kinds of process).
"""
