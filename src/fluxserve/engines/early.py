"""Engine processes begin while the server is still importing: which ones the settings ask for.

Torch takes as long to import as all of the server does. The two need not wait for each other.
"""

import importlib.util

from fluxserve.engines.local.start import EMBEDDED, LOCAL, Early, setups_of
from fluxserve.settings import Settings


def begin(settings: Settings) -> Early:
    """Start the processes of all engines of this machine; to be closed in any case."""
    names = local_engines(settings) if can_compute() else []
    return Early(
        [setup for name in names for setup in setups_of(name, settings.engine, settings.data)]
    )


def local_engines(settings: Settings) -> list[str]:
    """Those of this machine that run with these settings."""
    if settings.simulator.enabled:
        return []
    names = [route.engine for route in settings.route if route.engine in (EMBEDDED, LOCAL)]
    if settings.engine.model_dir:
        names.append(LOCAL)
    if is_bare(settings):
        names.append(EMBEDDED)
    return list(dict.fromkeys(names))


def is_bare(settings: Settings) -> bool:
    """Nothing is configured: the embedded model stands in for every other."""
    return not settings.route and not settings.engine.model_dir and not settings.upstream


def can_compute() -> bool:
    """Whether the `local` extra is installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", "safetensors", "tokenizers"))
