"""Pre-training on synthetic images, adaptation to labels, and their data."""
