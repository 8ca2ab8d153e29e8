"""Classifiers of participants, from the plan to the card (``--target``)."""
