"""What the service remembers and decides. Knows no web framework, no task queue worker and no torch."""
