"""The process around the GCS: sockets, clock and storage. Nothing here decides."""
