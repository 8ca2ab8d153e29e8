"""HTML reports: one file each, made from the derivatives alone, that opens anywhere."""
