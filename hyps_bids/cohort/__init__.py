"""Tables and statistics over all scans of a dataset: the group level without classifiers."""
