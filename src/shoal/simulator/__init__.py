"""A deterministic simulator of whole clusters over the production machines.

Purpose: to see what a thousand nodes do, and what becomes of a cluster in which everything breaks, in minutes, on one core, again and again the same.

Design: what decides is what runs in production: `LocalScheduler`, `Forwarding`, `LeashRule`, and the GCS's shard with its global scheduler, actor
manager and tables. Around them stand thin shells (`node`, `gcs`, `actors`), a small model of submitters and workers (`process`), and virtual time
with a network (`world`). Nothing here is imported by the product.

    world     time, dice, latency, partitions          tasks      what is computed
    process   drivers and workers (a model)            node, gcs  machines and shells
    actors    lives, calls, two lives that answer
    cluster   all together; safety and drain checks    campaign   faults drawn by seed
    exact     actors with checkpoints, their logs      shards     the lines to further shards of the GCS
    group_work placement groups                        keys       work on the tables that shards share
    shells    shells of the product in virtual time    scenarios  paper figures 8b, 12b, 14a; growth
    __main__  the command line

What it does not do: objects and refs (tests/node/cluster_of_refs.py plays those), sockets, processes.
"""

from __future__ import annotations
