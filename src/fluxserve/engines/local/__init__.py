"""Step batching on our own device."""
