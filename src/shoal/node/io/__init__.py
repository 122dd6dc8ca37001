"""The shells of the node daemon: sockets, processes, files, timers.

Purpose: perform what the machines decide. Read `daemon` first: it names the parts, and which message goes to which.

    connections   sockets, frames, order of writes      objects        object directory, sweeps
    processes     records and ends of processes         store_shell    segments, pins, spilling
    workers       zygote, starting, stopping            actors         between callers, workers, scheduler and GCS
    logs          what workers print                    gcs_link       the line to the GCS
    leases        local scheduler                       calls          rare requests
    memory_watch  kills a worker before the kernel      draining       a node that leaves
    cluster       membership; node_links, foreign_leases, routes: between nodes
    transfer      bytes of objects between nodes        gcs_process    the GCS server and its shards
    recoveries    logs of exact actors; log_keeping and log_holding: on other nodes
    leash         an actor that must be silent          head_watch     a head that is gone

What it does not do: decide.
"""
