"""A server for FLUX image generation and editing, in the APIs that people's code calls."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("fluxserve")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0"
