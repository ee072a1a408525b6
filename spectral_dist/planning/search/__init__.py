"""`--mesh=auto`: candidates, lower bounds, the worker processes that compile them, the choice."""
