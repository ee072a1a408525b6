"""Optimized HLO, the text of a compiled program: its parser, its collectives and its costs."""
