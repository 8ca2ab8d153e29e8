"""Pure functions on arrays and their affines."""
