"""The search for a mesh: candidates, lower bounds, the processes that compile, what is chosen."""
