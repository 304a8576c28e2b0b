"""Health, metrics, limits and logs: listeners, never participants."""
