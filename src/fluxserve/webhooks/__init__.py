"""What leaves the house by itself: webhook messages, signed, retried, never in each other's way."""
