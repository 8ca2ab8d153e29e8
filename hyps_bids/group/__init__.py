"""What the group level runs."""
