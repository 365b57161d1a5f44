"""What a cluster's ranks, links and head take, measured by themselves: the profile that all fidelities share."""
