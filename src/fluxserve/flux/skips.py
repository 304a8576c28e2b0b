"""What a fast run leaves out: whole steps, or the references within a step. Imports no torch."""

from collections.abc import Sequence

SKIP = "skip"  # some steps are extrapolated instead of computed
REF_KV = "ref_kv"  # in some steps keys and values of the references are those of an earlier one
FP8 = "fp8"  # linears in 8 bits: how the weights were loaded, the same for every request
APPROXIMATIONS = frozenset({SKIP, REF_KV})  # that are up to each request
SKIPS_MIN = 8  # below so many steps there is nothing between the first and the last three
REFRESH_CALLS = 2  # every so many computed steps the references are computed again


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
