"""Several processes as one run: identity, start, heartbeats, signals, agreement, the stop.

Process 0 is the coordinator: it speaks for the run (console, metrics, lock of the folder), and
starts the service that the processes reach each other by.
"""
