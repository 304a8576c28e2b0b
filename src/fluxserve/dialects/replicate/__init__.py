"""Replicate's API: predictions, files, models, streams, as its official clients call them."""

from fluxserve.dialects.replicate.dialect import DIALECT

__all__ = ["DIALECT"]
