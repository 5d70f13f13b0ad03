"""RNNCell: the parameters, layout and errors of torch.nn's module around the fused function."""

from __future__ import annotations

from typing import Any, Optional, Union

import torch
from torch import Tensor

from . import dispatch
from .arguments import left_to_torch, strided
from .attributes import no_tensor
from .call import Network, read
from .context import fusible, tracing, undisturbed
from .functional import rnn_step, run, shown_to_others
from .interchange import Interchangeable, TorchRNNCell

_WITH_BIASES, _WITHOUT = (
    {name: Network(name, biases=biases, step=True, module=True) for name in ("tanh", "relu")}
    for biases in (True, False)
)


class RNNCell(Interchangeable, TorchRNNCell):
    r"""One step of an Elman RNN, a drop-in for `torch.nn.RNNCell`.

    ``h' = act(input W_ih^T + b_ih + hx W_hh^T + b_hh)``, which is ``rnn_step`` with the module's weights.

    Args:
        input_size: I, the features of the input.
        hidden_size: H, the features of the state.
        bias: whether there are ``b_ih`` and ``b_hh``.
        nonlinearity: ``"tanh"`` or ``"relu"``; as in torch, another one raises when the cell is called.
        device, dtype: of the parameters.
        backend: ``"auto"`` or the name of a backend; an attribute that may be changed later.

    Raises:
        ValueError: unknown backend.
        RuntimeError: the backend is not available here; the message says why.
    """

    counterpart = TorchRNNCell

    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Optional[Union[torch.device, str]] = None,
        dtype: Optional[torch.dtype] = None,
        *,
        backend: str = "auto",
    ) -> None:
        dispatch.check_name(backend)
        super().__init__(input_size, hidden_size, bias, nonlinearity, device=device, dtype=dtype)
        self.backend = backend

    def forward(self, input: Tensor, hx: Optional[Tensor] = None) -> Tensor:
        """One step.

        Args:
            input: ``[B, I]``, or ``[I]`` without a batch.
            hx: the state before the step, ``[B, H]``, or ``[H]`` if the input has no batch; zeros if None.

        Returns:
            The state after the step, in the shape of hx.

        Raises:
            ValueError, RuntimeError: as `torch.nn.RNNCell` does.
        """
        # As in RNN.forward, but spelled out: a loop would take twice as long.
        p: dict[str, Any] = self._parameters
        weight_ih = p["weight_ih"] if "weight_ih" in p else self.weight_ih  # noqa: SIM401
        weight_hh = p["weight_hh"] if "weight_hh" in p else self.weight_hh  # noqa: SIM401
        bias_ih = p["bias_ih"] if "bias_ih" in p else self.bias_ih  # noqa: SIM401
        bias_hh = p["bias_hh"] if "bias_hh" in p else self.bias_hh  # noqa: SIM401
        nonlinearity, backend = self.nonlinearity, self.backend
        if bias_ih is None and bias_hh is None:
            weights: tuple[Any, ...] = (weight_ih, weight_hh)
            networks = _WITHOUT
        else:
            weights, networks = (weight_ih, weight_hh, bias_ih, bias_hh), _WITH_BIASES
        network = networks.get(nonlinearity)
        if network is not None and undisturbed() and (hx is not None or self._zeros_fit(weight_hh)):
            call = read(network, input, hx, weights, None)
            if call is not None:
                return run(call, backend)[0]
        if dispatch.means_auto(backend) and isinstance(input, Tensor) and fusible(input):
            return self.torchs(input, hx)  # the fewer functions a graph depends on, the shorter its guards
        if isinstance(input, torch.fx.Proxy):
            return self.leaf(input, hx)
        wrong = no_tensor(input, hx)
        tensors = (input, hx, weight_ih, weight_hh, bias_ih, bias_hh)
        if wrong is not None or tracing() or shown_to_others(backend, *tensors):
            return self.torchs(input, hx, wrong)
        if not strided(input, hx):
            return left_to_torch(self.torchs(input, hx), backend, tensors)
        dims = input.dim()
        if (
            dims not in (1, 2)
            or (hx is not None and hx.dim() != dims)
            or (hx is None and not self._zeros_fit(weight_hh))
            or self.nonlinearity not in ("tanh", "relu")
        ):
            return self.torchs(input, hx)  # raises torch's own error

        x = input if dims == 2 else input.unsqueeze(0)
        if hx is None:
            h = x.new_zeros(x.shape[0], self.hidden_size)
        else:
            h = hx if dims == 2 else hx.unsqueeze(0)
        out = rnn_step(x, h, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity, backend=backend)
        return out if dims == 2 else out.squeeze(0)

    def _zeros_fit(self, weight_hh: Tensor) -> bool:
        """Whether a state of zeros, of hidden_size units, goes with the weights."""
        return isinstance(self.hidden_size, int) and self.hidden_size == weight_hh.shape[-1]
