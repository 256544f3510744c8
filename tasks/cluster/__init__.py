"""Ray: connecting to a cluster, and what the work on its nodes has in common."""
