"""Providers that are not there: real servers on loopback that behave, or misbehave, as told."""
