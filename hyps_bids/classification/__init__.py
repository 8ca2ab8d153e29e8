"""Classifiers of participants (``--target``), along the way of the data.

``plan`` turns options into contrasts, columns and subjects. ``features``, ``harmonize`` and
``estimators`` make the pipelines that ``cross_validation`` fits, ``permutation`` tests,
``importance`` explains and ``metrics`` rates; ``validate`` does all this for one plan, after
``duration`` has said how long it will take. ``processes`` spreads the work. ``tables``,
``charts``, ``card`` and ``store`` write the folder of a classifier. The two doors are ``train``
and ``apply``.
"""
