"""What changes between the scans of one person, in a space midway between them."""
