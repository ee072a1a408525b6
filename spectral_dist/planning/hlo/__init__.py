"""The compiled program's text (HLO) read: its instructions, its collectives, what they cost."""
