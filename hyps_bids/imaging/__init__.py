"""Arrays and affines only: no BIDS, no networks."""
