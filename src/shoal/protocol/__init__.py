"""The shared language: ids, resources, messages, limits and errors.

Everything above imports this layer; it imports nothing of Shoal. It holds no behaviour beyond arithmetic on its own values.

Reading order: `ids`, `values`, `messages` (what crosses sockets of one node; docs/PROTOCOL.md lists all), `node_messages` (between nodes),
`gcs_messages`; then `limits`, `errors`, `resources`, `strategies` as they are needed.
"""
