"""Ranks brought up, given their layers and kept in touch with: processes, threads, an MPI world, workers elsewhere."""
