"""The recipe of the shipped weights, and what carries it out: ``hyps-tools train``."""
