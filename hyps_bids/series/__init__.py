"""Participants with several scans: which series a run brings up to date, and how one is done."""
