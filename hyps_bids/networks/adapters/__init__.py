"""Parameter-efficient adapters: one interface, one class per method, chosen by name.

:mod:`~hyps_bids.networks.adapters.config` says what can be chosen,
:mod:`~hyps_bids.networks.adapters.layers` holds the equations of each method, and
:mod:`~hyps_bids.networks.adapters.network` puts them into a network and takes out what must be
saved. METHODS lists every name.
"""

from hyps_bids.networks.adapters.config import METHODS, AdapterConfig
from hyps_bids.networks.adapters.layers import ADAPTERS, AdapterLayer
from hyps_bids.networks.adapters.network import (
    ParameterCounts,
    adapter_state,
    add_adapters,
    load_adapter_state,
    merge_adapters,
    parameter_counts,
)

__all__ = [
    "ADAPTERS",
    "METHODS",
    "AdapterConfig",
    "AdapterLayer",
    "ParameterCounts",
    "adapter_state",
    "add_adapters",
    "load_adapter_state",
    "merge_adapters",
    "parameter_counts",
]
