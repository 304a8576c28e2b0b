"""What a fast run leaves out: steps, references within a step, digits. Imports no torch."""

from collections.abc import Sequence
from enum import StrEnum

SKIP = "skip"  # some steps are extrapolated instead of computed
REF_KV = "ref_kv"  # in some steps keys and values of the references are those of an earlier one
FP8 = "fp8"  # the large linears work in 8 bits; only where they were loaded so
APPROXIMATIONS = frozenset({SKIP, REF_KV})  # that any engine can do
SKIPS_MIN = 8  # below so many steps there is nothing between the first and the last three
REFRESH_CALLS = 2  # every so many computed steps the references are computed again


class Linears(StrEnum):
    """How the large linears of the blocks are kept on the device."""

    EXACT = "exact"  # as published: nobody can have 8 bits
    FP8 = "fp8"  # in 8 bits only: everybody has them
    BOTH = "both"  # each request has what it asks for


def skip_map(num_steps: int) -> tuple[bool, ...]:
    """Which steps are computed; the others are extrapolated from those before them.

    The first three and the last three are computed, between them one in three: 13 of 28. It is the
    fast schedule of Replicate's published FLUX.1 Kontext server.
    """
    return tuple(at < 3 or at >= num_steps - 3 or (at - 4) % 3 == 0 for at in range(num_steps))


def refresh_map(computed: Sequence[bool]) -> tuple[bool, ...]:
    """In which of the computed steps the references are computed too, not only what is made.

    The first and then one in `REFRESH_CALLS` of those that are computed: 14 of 28, 7 of 13.
    """
    calls = [at for at, is_computed in enumerate(computed) if is_computed]
    refreshed = set(calls[::REFRESH_CALLS])
    return tuple(at in refreshed for at in range(len(computed)))
