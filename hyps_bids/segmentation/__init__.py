"""From an image to the labels and measures of its hippocampi. Knows nothing of BIDS datasets."""
