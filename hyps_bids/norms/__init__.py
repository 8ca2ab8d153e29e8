"""Normative models: how large a measure is for an age, a sex, an intracranial volume and a site.

``sample`` has the values that go in and come out. The columns of a model come from ``design`` and
``age``, and its distribution from ``family``; ``penalized`` fits both, ``fit`` does so for
controls, and ``norm`` scores scans. ``folds`` scores the controls themselves, ``calibrate`` adds
sites, ``calibration`` says how well scores are calibrated, and ``store`` keeps models in a file.

For the app, ``fitting`` and ``apply`` are the doors: ``people`` and ``measures`` say who and what
is modeled, ``checks`` what a norm is valid for, ``folder``, ``card``, ``charts`` and ``tables``
write the results, and ``words`` put them into sentences.
"""
