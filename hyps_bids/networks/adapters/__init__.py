"""Parameter-efficient adapters: settings, equations, and their place in a network.

:mod:`~hyps_bids.networks.adapters.config` says what can be chosen,
:mod:`~hyps_bids.networks.adapters.layers` holds the equations of each method, and
:mod:`~hyps_bids.networks.adapters.network` adds, saves and loads adapters of whole networks.
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
