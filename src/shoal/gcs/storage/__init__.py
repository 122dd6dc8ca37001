"""Where the tables of the GCS are kept: one small protocol (`backend`) and its implementations, all held by one conformance suite."""
