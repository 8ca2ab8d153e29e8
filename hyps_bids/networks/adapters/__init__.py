"""Parameter-efficient adapters: settings, equations, and their place in a network.

:mod:`~hyps_bids.networks.adapters.config` says what can be chosen,
:mod:`~hyps_bids.networks.adapters.layers` holds the equations of each method, and
:mod:`~hyps_bids.networks.adapters.network` adds, saves and loads adapters of whole networks. The
first needs no PyTorch.
"""
