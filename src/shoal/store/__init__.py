"""The shared-memory store of one node: blocks of immutable bytes that every process of the node reads without a copy.

Reading order: `mapping` (memory), `page` (pins), `allocator` (pure), `segment` (blocks and headers), `client` (the door).
The daemon's half is `node.store_table` (pure) and `node.io.store_shell`.
"""
