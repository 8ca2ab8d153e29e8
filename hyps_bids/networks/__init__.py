"""Network architectures, adapters and weights files."""
