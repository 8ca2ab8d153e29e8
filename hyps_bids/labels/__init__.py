"""Labeled datasets: where the labels are, what they mean, and how other layouts are imported."""
