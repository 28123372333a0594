"""The meeting point of one host's ranks, reachable from this host only.

torchrun's own meeting points listen on every address of the host and ask for no password: whoever reaches
the port could read and write what the ranks tell each other. This one listens on the loopback address, on
a port that the kernel chose, held from the start, so that many runs on one host never meet.
"""

from __future__ import annotations

import socket

from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

BACKEND = "loopback"
LOOPBACK = "127.0.0.1"


class LoopbackRendezvous(RendezvousHandler):
    """For a launcher that starts all ranks itself: nobody is waited for, nobody joins later."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        with socket.create_server((LOOPBACK, 0)) as listener:
            port = listener.getsockname()[1]
            # The store owns the descriptor from here on and closes it.
            self._store = TCPStore(
                LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
            )

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        """The ranks are clients of this store: rank 0 would open another one, on all addresses."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        meeting_point = RendezvousStoreInfo(LOOPBACK, self._store.port)
        return RendezvousInfo(PrefixStore(self._run_id, self._store), 0, 1, meeting_point)

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nobody else could come."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        return True


def register() -> None:
    """Makes `--rdzv-backend=loopback` known to torchrun in this process."""
    rendezvous_handler_registry.register(BACKEND, _create)


def _create(parameters: RendezvousParameters) -> RendezvousHandler:
    return LoopbackRendezvous(parameters.run_id)
