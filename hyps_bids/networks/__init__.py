"""The networks, the adapters, and their files of weights."""
