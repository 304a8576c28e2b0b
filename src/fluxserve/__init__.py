"""A server for FLUX image generation and editing, in the APIs that people's code calls."""


def __getattr__(name: str) -> str:
    """`__version__`, looked up when somebody asks: few processes do, and it takes a while."""
    if name != "__version__":
        raise AttributeError(name)
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("fluxserve")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0.0.0"
