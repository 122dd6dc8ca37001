"""How bytes travel: framing as a byte machine, without a socket."""
