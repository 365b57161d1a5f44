"""Many requests over one cluster, from any thread: what an endpoint stands on."""
