"""Somebody else's device: providers that are paid by the picture, asked at most once for each."""
