"""Normative models: how large a measure is for an age, a sex, an intracranial volume and a site.

``sample`` has the values that go in and come out. ``norm`` fits one measure and scores scans,
``folds`` scores the controls themselves, ``calibration`` says how well scores are calibrated, and
``store`` keeps the models of several measures in one file.
"""
