"""Networks that OpenVINO computes on the CPU."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from hyps_bids.errors import BadData
from hyps_bids.networks.cards import Architecture
from hyps_bids.networks.graphs import build_graph
from hyps_bids.networks.openvino import ov
from hyps_bids.networks.states import adapted_state, network_state
from hyps_bids.segmentation.devices import threads_of_process
from hyps_bids.system import call_at_forks


class OpenVinoNetwork:
    """A network whose graph is built at once, and compiled when it is first used.

    Forked processes share the weights; each compiles the graph for itself, because OpenVINO's
    threads do not survive a fork. For the same reason this process compiles it again after a fork.
    A graph has a fixed shape, so inputs of another shape than the usual one get a graph of their
    own.

    Parameters
    ----------
    path : Path
        File of weights, for messages.
    architecture, state : Architecture, mapping of str to numpy.ndarray
        From :mod:`hyps_bids.networks.states`.
    labels : sequence of str
        Names of the classes.
    sides : sequence of int
        Usual shape of a volume.
    """

    def __init__(
        self,
        path: Path,
        architecture: Architecture,
        state: Mapping[str, np.ndarray],
        labels: Sequence[str],
        sides: Sequence[int],
    ) -> None:
        self.labels = tuple(labels)
        self._architecture, self._state = architecture, state
        self._requests: dict[tuple[tuple[int, ...], int], ov.InferRequest] = {}
        _networks.add(self)
        try:
            self._graphs = {tuple(sides): self._build(sides)}
        except ValueError as error:
            raise BadData(
                f"{path}: the weights do not fit their architecture: {error}", code="weights-misfit"
            ) from error

    @classmethod
    def of_network(cls, path: Path, sides: Sequence[int]) -> OpenVinoNetwork:
        """Load a whole network."""
        state, card = network_state(path)
        return cls(path, card["architecture"], state, card["labels"], sides)

    @classmethod
    def of_adapter(cls, adapter: Path, base: Path, sides: Sequence[int]) -> OpenVinoNetwork:
        """Load an adapter on its base."""
        state, architecture, card = adapted_state(adapter, base)
        return cls(adapter, architecture, state, card["labels"], sides)

    def predict(self, batch: np.ndarray) -> tuple[np.ndarray, str]:
        """Compute class probabilities, one volume at a time; see :class:`.inference.Network`."""
        request = self._request(batch.shape[2:])
        # The result belongs to the request, which is used again.
        return np.concatenate([request.infer([one[None]])[0] for one in batch]), "cpu"

    def release(self) -> None:
        """Forget what was compiled; the next prediction compiles it again."""
        self._requests.clear()

    def _request(self, sides: tuple[int, ...]) -> ov.InferRequest:
        threads = threads_of_process()
        if (sides, threads) not in self._requests:
            if sides not in self._graphs:
                self._graphs[sides] = self._build(sides)
            settings = {
                "INFERENCE_NUM_THREADS": threads,
                # By default OpenVINO computes in bfloat16 where the processor can, but results
                # would depend on the machine.
                "INFERENCE_PRECISION_HINT": "f32",
                # Several processes would be pinned to the same cores.
                "ENABLE_CPU_PINNING": False,
                "ENABLE_HYPER_THREADING": True,
            }
            compiled = _core().compile_model(self._graphs[sides], "CPU", settings)
            self._requests[sides, threads] = compiled.create_infer_request()
        return self._requests[sides, threads]

    def _build(self, sides: Sequence[int]) -> ov.Model:
        architecture = self._architecture
        return build_graph(
            architecture["name"], architecture["kwargs"], self._state, (1, 1, *sides)
        )


#: All networks of this process.
_networks: weakref.WeakSet[OpenVinoNetwork] = weakref.WeakSet()


@cache
def _core() -> ov.Core:
    core = ov.Core()
    # Otherwise threads of the library below OpenVINO would outlive it.
    core.set_property({"FORCE_TBB_TERMINATE": True})
    return core


def _end_threads() -> None:
    """Release all that OpenVINO has compiled, and thereby its threads.

    OpenVINO keeps the threads of networks that are gone for those that come. In a forked process
    they do not exist, and compiling a graph there would wait for them for ever.
    """
    for network in list(_networks):
        network.release()
    _core.cache_clear()


call_at_forks(_end_threads)
