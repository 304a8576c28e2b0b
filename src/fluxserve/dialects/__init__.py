"""The HTTP APIs this server speaks, one file or folder each; this is their list.

Order decides who answers an unknown path that two of them could own.
"""

from fluxserve.dialects import bfl, fal, native, openai, replicate, wavespeed
from fluxserve.dialects.base import Dialect

DIALECTS: tuple[Dialect, ...] = (
    native.DIALECT,
    bfl.DIALECT,
    replicate.DIALECT,
    wavespeed.DIALECT,
    openai.DIALECT,
    fal.DIALECT,
)
