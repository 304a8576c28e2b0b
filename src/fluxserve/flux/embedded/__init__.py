"""The small model that ships with the package: a checkpoint, its defaults and its model card."""
