"""Tables and statistics over all scans of a dataset."""
