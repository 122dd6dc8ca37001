"""How bytes travel: frames, and the connections between nodes.

Reading order: `framing` (messages to bytes and back), `handshake` (both ends prove the token; byte machines like the first, without a socket),
`tcp` and `tcp_listener` (dialling, accepting), `tls`.
"""
