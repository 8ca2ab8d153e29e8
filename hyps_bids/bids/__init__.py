"""BIDS in and out: scans from a dataset, names and sidecars of derivatives. No tensors here."""
