"""LeakyRNN and CTRNN: recurrences whose state leaks, with noise, in one call for all steps."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Optional, Union, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .arguments import check_alpha, check_nonlinearity
from .call import Network, read
from .context import undisturbed
from .functional import run
from .modules import RNN


class _Leaking(RNN):
    """What the two have in common. `alpha` and `noise_std` are those of all layers and directions.

    Attributes:
        alpha: a float, a tensor ``[H]``, or with `learn_alpha` ``sigmoid(alpha_logit)``. May be set later, if
            it is not learned.
        alpha_logit: a Parameter, of a learned alpha alone: ``[]`` if alpha was a number, ``[H]`` if it was a
            tensor. The sigmoid keeps alpha within (0, 1).
        unit_alpha: a buffer, ``[H]``, of an alpha that was a tensor and is not learned.
    """

    cell: ClassVar[str]
    weight_hh_l0: Tensor
    alpha_logit: torch.nn.Parameter
    unit_alpha: Tensor

    _is_torchs = False

    noise_std: float = 0.0
    noise_in_eval: bool = False

    _initial: Union[float, Tensor] = 1.0  # alpha as it was given, or set; on the CPU
    # What a call computes that RNN.forward doesn't do by itself, or None as there.
    _leaking: Optional[Network] = None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Optional[Union[torch.device, str]] = None,
        dtype: Optional[torch.dtype] = None,
        *,
        alpha: Union[float, Tensor] = 1.0,
        learn_alpha: bool = False,
        noise_std: float = 0.0,
        noise_in_eval: bool = False,
        backend: str = "auto",
    ) -> None:
        check_nonlinearity(nonlinearity)
        for name, flag in (("learn_alpha", learn_alpha), ("noise_in_eval", noise_in_eval)):
            if not isinstance(flag, bool):
                raise TypeError(f"argument '{name}' must be bool, not {type(flag).__name__}")
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            "relu" if nonlinearity == "relu" else "tanh",  # those that torch's base class knows
            bias,
            batch_first,
            dropout,
            bidirectional,
            device,
            dtype,
            backend=backend,
        )
        self.nonlinearity = nonlinearity
        self.noise_std = noise_std
        self.noise_in_eval = noise_in_eval
        self._initial = self._checked(alpha)
        like = self.weight_hh_l0
        if learn_alpha:
            if (self._initial if isinstance(self._initial, float) else self._initial.max().item()) == 1:
                raise ValueError("a learned alpha must be in (0, 1): it is a sigmoid, which is never 1")
            shape = () if isinstance(self._initial, float) else (hidden_size,)
            self.alpha_logit = torch.nn.Parameter(like.detach().new_empty(shape))
        elif isinstance(self._initial, Tensor):
            self.register_buffer("unit_alpha", like.detach().new_empty(hidden_size))
        self._reset_alpha()
        self._look_at_attributes()

    @property
    def alpha(self) -> Union[float, Tensor]:
        if "alpha_logit" in self._parameters:
            return torch.sigmoid(self.alpha_logit)
        return self.unit_alpha if "unit_alpha" in self._buffers else self._initial  # type: ignore[return-value]

    @alpha.setter
    def alpha(self, value: Union[float, Tensor]) -> None:
        if "alpha_logit" in self._parameters:
            raise AttributeError("this alpha is learned: it is sigmoid(alpha_logit), set that")
        self._initial = self._checked(value)
        self._buffers.pop("unit_alpha", None)
        if isinstance(self._initial, Tensor):
            self.register_buffer("unit_alpha", torch.empty_like(self.weight_hh_l0[0].detach()))
        self._reset_alpha()

    def _checked(self, alpha: Any) -> Union[float, Tensor]:
        """A float, or a copy ``[H]`` on the CPU in float64.

        Raises:
            TypeError, ValueError: neither a number nor a tensor ``[H]``, or not within (0, 1].
        """
        if not isinstance(alpha, Tensor):
            check_alpha(alpha)
            return float(alpha)
        if not alpha.is_floating_point() or alpha.shape not in ((), (self.hidden_size,)):
            raise ValueError(
                f"alpha must be a float, or a tensor [{self.hidden_size}] of a floating dtype;"
                f" got {list(alpha.shape)} of {alpha.dtype}"
            )
        values = alpha.detach().to("cpu", torch.float64, copy=True)
        if not bool(((values > 0) & (values <= 1)).all()):
            raise ValueError(f"every alpha must be in (0, 1], got {values.tolist()}")
        return values if values.dim() else float(values)

    def reset_parameters(self) -> None:
        """Draws the weights anew, as torch does, and sets alpha to what it was at first."""
        super().reset_parameters()
        self._reset_alpha()

    def _reset_alpha(self) -> None:
        initial = torch.as_tensor(self._initial, dtype=torch.float64)
        with torch.no_grad():
            if "alpha_logit" in self._parameters:
                self.alpha_logit.copy_(torch.logit(initial))
            elif "unit_alpha" in self._buffers:
                self.unit_alpha.copy_(initial)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "noise_std" and (
            not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf
        ):
            raise ValueError(f"noise_std must be a number that is not negative, got {value!r}")
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        learned = "alpha_logit" in self._parameters
        alpha = self._initial if not isinstance(self._initial, Tensor) else f"[{self.hidden_size}]"
        text = f"{super().extra_repr()}, nonlinearity={self.nonlinearity}, alpha={alpha}"
        text += ", learn_alpha=True" if learned else ""
        text += f", noise_std={self.noise_std}" if self.noise_std else ""
        return text + (", noise_in_eval=True" if self.noise_in_eval else "")

    def revert(self) -> None:
        """Raises RuntimeError: torch has no class that computes this."""
        raise RuntimeError(f"torch has no counterpart of {type(self).__name__} to revert it to")

    def _look_at_attributes(self) -> None:
        super()._look_at_attributes()
        network = self._network
        self.__dict__["_leaking"] = network
        if network is not None and network.per != 2 + 2 * network.biases:
            self.__dict__["_network"] = None

    def _described(self) -> Network:
        cell, noisy = self.cell, bool(self.noise_std) and (self.training or self.noise_in_eval)
        constant = not ("alpha_logit" in self._parameters or "unit_alpha" in self._buffers)
        if cell == "leaky" and constant and self._initial == 1:
            cell = "elman"
        return super()._described()._replace(nonlinearity=self.nonlinearity, cell=cell, noise=noisy)

    def _prepared(
        self, input: Any, hx: Any, weights: tuple[Any, ...], resets: Any, states: bool = False
    ) -> tuple[Any, ...]:
        network = self._leaking
        # Noise is drawn for an input that is known to fit: once, whatever becomes of the call.
        known = network is not None and not network.noise and type(input) is not PackedSequence
        if network is not None and known and resets is None and undisturbed():
            call = read(network, input, hx, self._completed(network, weights, 0), None)
            if call is not None:
                results = run(call, self.backend)
                if not states:
                    return results[:2]
                return *results[:2], results[-1][-1].reshape(results[0].shape)
        return super()._prepared(input, hx, weights, resets, states)

    def _completed(self, network: Network, weights: tuple[Any, ...], rows: int) -> tuple[Any, ...]:
        """With alpha ``[H]`` and noise ``[rows, H]`` after the weights of each layer and direction."""
        count, hidden = network.layers * len(network.reverse), self.hidden_size
        each, like, alpha = len(weights) // count, weights[1], self.alpha
        extra: tuple[Tensor, ...] = ()
        if network.cell != "elman":
            if isinstance(alpha, Tensor):
                extra = (alpha.expand(hidden).contiguous() if alpha.dim() == 0 else alpha,)
            else:
                extra = (like.new_full((hidden,), alpha),)
        if not network.noise:
            return tuple(w for i in range(count) for w in (*weights[i * each : (i + 1) * each], *extra))
        xi = torch.randn(count, rows, hidden, dtype=like.dtype, device=like.device)
        noise = xi * self._noise_scale(alpha)
        return tuple(w for i in range(count) for w in (*weights[i * each : (i + 1) * each], *extra, noise[i]))

    def _noise_scale(self, alpha: Union[float, Tensor]) -> Union[float, Tensor]:
        """The standard deviation of what is added in a step."""
        return self.noise_std


class LeakyRNN(_Leaking):
    r"""Leaky RNN: ``h_t = (1 - alpha) h_{t-1} + alpha f(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh + n_t)``.

    The units of echo state networks. With alpha = 1, the default, it is `rnnfast.RNN`, kernel and bits.

    ``n_t = noise_std * xi_t``, xi being standard normal, drawn anew in each call by torch's generator of the
    weights' device: for each layer and direction in turn, for all rows in time-major order. So a seed repeats
    it, on any backend and number of threads.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype: those
            of `rnnfast.RNN`, as is backend. Parameters have the same names.
        nonlinearity: f: ``"tanh"``, ``"relu"``, ``"sigmoid"``, ``"softplus"`` or ``"identity"``.
        alpha: in (0, 1], a number or a tensor ``[hidden_size]``, the same for all layers and directions.
            Modules one after the other may have different ones.
        learn_alpha: whether alpha is learned, within (0, 1): it is ``sigmoid(alpha_logit)`` then, alpha_logit
            being the parameter.
        noise_std: the standard deviation of the noise; 0 for none.
        noise_in_eval: whether there is noise in evaluation, too, and not in training alone.

    Raises:
        ValueError, TypeError: as `torch.nn.RNN` does; for an unknown nonlinearity or backend, and an alpha or
            noise_std that is out of its range or of another type.
        RuntimeError: the backend is not available here; the message says why.
    """

    cell = "leaky"


class CTRNN(_Leaking):
    r"""Continuous-time rate network, ``tau dv/dt = -v + x W_ih^T + r W_hh^T + b``, r = f(v), in steps of dt.

    ``v_t = (1 - alpha) v_{t-1} + alpha (x_t W_ih^T + b_ih + r_{t-1} W_hh^T + b_hh) + n_t``, ``r_t = f(v_t)``,
    with ``alpha = dt / tau``: Euler's method. The output is r, which is also what the next layer reads; h_n
    and hx are v.

    ``n_t = sqrt(2 alpha) noise_std * xi_t``, xi being standard normal, drawn as in `LeakyRNN`. Without any
    other input v then has a standard deviation of ``noise_std / sqrt(1 - alpha / 2)`` in the long run.

    Args and errors: those of `LeakyRNN`.
    """

    cell = "ctrnn"

    @overload  # type: ignore[override]
    def forward(
        self,
        input: Tensor,
        hx: Optional[Tensor] = None,
        resets: Optional[Tensor] = None,
        return_states: bool = False,
    ) -> tuple[Tensor, ...]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: Optional[Tensor] = None,
        resets: None = None,
        return_states: bool = False,
    ) -> tuple[PackedSequence, ...]: ...

    def forward(self, input: Any, hx: Any = None, resets: Any = None, return_states: bool = False) -> Any:
        """Runs all layers.

        Args:
            input, resets: as those of `RNN.forward`.
            hx: the initial v, ``[layers * directions, B, H]``, without B for unbatched input; zeros if None.
            return_states: whether to return the last layer's v, too.

        Returns:
            r of the last layer, ``[T, B, directions * H]`` in the layout of the input, and the last v of each
            layer and direction, like hx. With return_states v of the last layer, too, in the layout of r.

        Raises:
            As `RNN.forward`.
        """
        if not return_states:
            return super().forward(input, hx, resets)
        weights = tuple([getattr(self, name) for name in self._flat_weights_names])
        return self._prepared(input, hx, weights, resets, True)

    def _noise_scale(self, alpha: Union[float, Tensor]) -> Union[float, Tensor]:
        return (2 * alpha) ** 0.5 * self.noise_std
