"""What a trial leaves behind, and every metric that is derived from it."""
