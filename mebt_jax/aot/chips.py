"""Figures of TPU chips, for the least time and the memory of a compiled program."""

import dataclasses
from typing import Any

from jax.experimental import topologies

from mebt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Figures of one chip; sources below."""

    name: str
    hbm_bytes: float  # that the compiler lets a program use
    hbm_bytes_per_second: float
    flops: float  # bfloat16 operations a second
    # Sent to the other chips of the slice, over all links, in one direction.
    ici_bytes_per_second: float
    dcn_bytes_per_second: float  # sent to other slices: a chip's share of its host's network


# Cloud TPU documentation, docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, read in November 2026.
# Interconnect: v5e and v6e list 400 and 800 GB/s for both directions together; v5p lists 4800
# Gbit/s; v4 has 6 links of 50 GB/s (Jouppi et al. 2023, table 4). Network between slices: v5e and
# v6e hosts of 8 chips have 2 x 100 Gbit/s and 4 x 200 Gbit/s; for v4 and v5p hosts of 4 chips 200
# Gbit/s is an assumption. The HBM is what libtpu 0.0.42 says is available when a program needs
# more; listed are 32 GiB, 16, 95 and 32 GB.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 30.75 * 2**30, 1200e9, 275e12, 300e9, 6.25e9),
        Chip("v5e", 15.75 * 2**30, 819e9, 197e12, 200e9, 3.1e9),
        Chip("v5p", 95.74 * 2**30, 2765e9, 459e12, 600e9, 6.25e9),
        Chip("v6e", 31.25 * 2**30, 1638e9, 918e12, 400e9, 12.5e9),
    )
}


def of_topology(topology: str) -> Chip:
    """The chip of a topology such as "v5e:4x4"."""
    name = topology.split(":")[0]
    if name not in CHIPS:
        raise UserError(
            f"--topology={topology} begins with no known generation; give one of "
            f"{', '.join(CHIPS)}, such as v5e:4x4."
        )
    return CHIPS[name]


def devices(topology: str, slices: int = 1) -> list[Any]:
    """The devices of `slices` slices of a topology, one for each chip.

    Raises:
        UserError: libtpu is not there, or does not know the topology.
    """
    # By default the two cores of a v4 chip are two devices.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4") else {}
    try:
        return list(
            topologies.get_topology_desc(
                topology, platform="tpu", num_slices=slices, **options
            ).devices
        )
    # libtpu raises one kind of error for an unknown name and another kind if it is missing.
    except Exception as error:
        raise UserError(
            f"No topology {topology}: {str(error).splitlines()[0]}; install 'mebt_jax[aot]' and "
            "give a name such as v5e:4x4."
        ) from error
