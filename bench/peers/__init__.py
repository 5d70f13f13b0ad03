"""The contenders, by name, in the order in which tables show them."""

from __future__ import annotations

from bench.peers.base import Peer, Prepared
from bench.peers.flaggems_rnn import FlagGemsRNN
from bench.peers.jax_scan import JaxScan
from bench.peers.onnxruntime_rnn import OnnxRuntimeRNN
from bench.peers.openvino_rnn import OpenVinoRNN
from bench.peers.paddle_rnn import PaddleRNN
from bench.peers.rnnfast_rnn import Rnnfast
from bench.peers.torch_cell_loop import TorchCellLoop
from bench.peers.torch_compile_loop import TorchCompileLoop
from bench.peers.torch_rnn import TorchRNN
from bench.peers.xma_rnn import XmaRNN

__all__ = ["OURS", "PEERS", "Peer", "Prepared", "default_peers"]

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in [
        Rnnfast("auto"),
        Rnnfast("cuda"),
        Rnnfast("triton"),
        Rnnfast("cpu"),
        Rnnfast("aten"),
        Rnnfast("eager"),
        TorchRNN(),
        TorchCellLoop(),
        TorchCompileLoop(),
        OnnxRuntimeRNN(),
        OpenVinoRNN(),
        JaxScan(),
        PaddleRNN(),
        FlagGemsRNN(),
        XmaRNN(),
    ]
}

OURS = tuple(name for name in PEERS if name.startswith("rnnfast"))


def default_peers(device: str = "cpu") -> list[str]:
    """Everybody who runs there but the eager backend, the fallback that is not meant to be fast."""
    return [name for name, peer in PEERS.items() if device in peer.devices and name != "rnnfast-eager"]
