"""Which steps of a fast run are computed and which are extrapolated. Imports no torch."""


def skip_map(num_steps: int) -> tuple[bool, ...]:
    """Which steps are computed; the others are extrapolated from those before them.

    The first three and the last three are computed, between them one in three: 13 of 28. It is the
    fast schedule of Replicate's published FLUX.1 Kontext server.
    """
    return tuple(at < 3 or at >= num_steps - 3 or (at - 4) % 3 == 0 for at in range(num_steps))
