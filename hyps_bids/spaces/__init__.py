"""Labels of scans in the spaces of templates (``--output-spaces``)."""
