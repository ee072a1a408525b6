"""Several processes as one run: who is who, signals, watching each other, stopping together."""
