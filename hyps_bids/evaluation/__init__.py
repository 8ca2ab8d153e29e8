"""Measurements of weights, behind ``hyps-tools evaluate``: one module for each kind.

Everything runs through the steps that the participant level runs.
"""
