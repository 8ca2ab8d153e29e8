"""Normative models: how large a measure is for an age, a sex, an intracranial volume and a site.

``sample`` has the values that go in and come out, and ``norm`` is the door. The columns of a model
come from ``design`` and ``age``, and its distribution from ``family``; ``penalized`` fits both,
``fit`` does so for controls, and ``model`` scores scans. ``folds`` scores the controls themselves,
``calibrate`` adds sites, ``calibration`` says how well scores are calibrated, and ``store`` keeps
models in a file.
"""
