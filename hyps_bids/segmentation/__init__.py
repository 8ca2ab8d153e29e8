"""Inference: from arrays and affines to probabilities. Knows nothing of BIDS."""
