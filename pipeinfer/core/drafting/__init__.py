"""One file per draft policy: which tokens to try. The entry-point group is `pipeinfer.drafting`."""
