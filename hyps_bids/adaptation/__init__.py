"""Adapters trained on manual labels, from a dataset (``--train-adapter``) or a folder of crops.

Labels are checked (``label_masks``) and cut out (``labeled_crops``, ``crops``);
``plan`` and ``folds`` say how to train, ``fit`` trains, ``assess`` measures the result, ``run``
puts the steps together and ``publish`` writes the model.
"""
