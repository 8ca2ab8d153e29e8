"""Adapters trained on labeled scans.

Crops, fit, cross-validation, assessment (``--train-adapter``).
"""
