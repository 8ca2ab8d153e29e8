"""Synthetic brain images, and the training of localizer and base on them."""
