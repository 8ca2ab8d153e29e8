"""From volumes to a diagnosis: pipelines, nested cross-validation and honest figures."""
