"""Distributed runs: several processes that start, agree, watch each other and stop together.

Process 0 is the coordinator. It prints, writes the metrics, holds the lock of the run folder, and
starts the control service, through which the processes reach each other.
"""
