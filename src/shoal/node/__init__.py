"""The node daemon: one process a node, with the local scheduler's shell, the object directory and the store's table.

Purpose: everything that the processes of one node need to agree on: who works for whom, who holds which object, where it lies.

Design: pure machines here, all effects under `io`; the scheduler is `shoal.scheduling`.

    object_directory   who holds what; its parts: succession, claims, estates, mirrors, needs (dead owners, lineage), handings, handed_refs,
                       foreign_holds (refs between processes and nodes), copies, residency
    store_table        memory and disk; reading_room says whose arguments may wait in memory
    pulls, servings    objects between nodes
    actor_logs         checkpoints and calls of exact actors; log_copies and log_holds keep them on other nodes
    leash_rule, head_patience, memory_policy, shard_lines     rules of their own

What it does not do: run user code, or take part in single tasks.
"""
