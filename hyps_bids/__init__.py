"""HyPS-BIDS: hippocampus segmentation in T1-weighted MRI as a BIDS App."""

__version__ = "0.2.0"
