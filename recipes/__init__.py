"""Worked examples: programs that use this package beside others, to be copied and changed."""
