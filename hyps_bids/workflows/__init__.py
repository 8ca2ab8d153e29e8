"""The nipype workflows.

Thin nodes around the steps of the pipeline, and the engines that run them.
"""
