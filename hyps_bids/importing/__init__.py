"""Labelled datasets of all kinds become BIDS: raw images, and derivatives with their labels."""
