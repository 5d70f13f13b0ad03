"""torch's own table of module tests, the entries of RNN and RNNCell, run on torch's classes and on ours.

torch's runs come along to show that a test asks for nothing that torch itself doesn't do.
"""

import copy
import io
import pickle
from functools import partial

import pytest
import torch

import rnnfast
from rnnfast.testing import BACKENDS

try:
    from torch.testing._internal.common_modules import ModuleErrorEnum, module_db
    from torch.testing._internal.common_utils import gradcheck, gradgradcheck
except ImportError as error:
    pytest.skip(f"this torch keeps its table of module tests elsewhere ({error})", allow_module_level=True)

INFOS = {info.module_cls: info for info in module_db if info.module_cls in (torch.nn.RNN, torch.nn.RNNCell)}
CASES = [
    pytest.param(theirs, build, device, id=f"{name}-{device}")
    for theirs, ours in ((torch.nn.RNN, rnnfast.RNN), (torch.nn.RNNCell, rnnfast.RNNCell))
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else []))
    for name, build in (
        (f"torch.{theirs.__name__}", theirs),
        *(
            (f"{ours.__name__}-{backend}", partial(ours, backend=backend))
            for backend in BACKENDS
            if backend != "cpu" or device == "cpu"
        ),
    )
]
pytestmark = [
    pytest.mark.parametrize("theirs, build, device", CASES),
    pytest.mark.skipif(len(INFOS) != 2, reason="this torch's table has no entries for RNN and RNNCell"),
]

PACKED = {"with_packed_sequence": True}


def samples(theirs, build, device, dtype=torch.float64, requires_grad=False, training=True):
    """The table's samples as (module, its arguments, sample)."""
    kwargs = PACKED if theirs is torch.nn.RNN else {}
    info = INFOS[theirs]
    for sample in info.module_inputs_func(info, device, dtype, requires_grad, training, **kwargs):
        constructor, forward = sample.constructor_input, sample.forward_input
        module = build(*constructor.args, **constructor.kwargs, device=device, dtype=dtype).train(training)
        yield module, forward.args, sample


def flat(result):
    """The tensors of a result that may hold a PackedSequence."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [part.data if isinstance(part, torch.nn.utils.rnn.PackedSequence) else part for part in result]


def counterpart(theirs, sample, module, device, dtype=torch.float64):
    constructor = sample.constructor_input
    other = theirs(*constructor.args, **constructor.kwargs, device=device, dtype=dtype)
    other.load_state_dict(module.state_dict(), strict=True)
    return other.train(module.training)


@pytest.mark.parametrize("training", [True, False])
def test_forward(theirs, build, device, training):
    for module, args, sample in samples(theirs, build, device, training=training):
        actual = module(*args)
        torch.testing.assert_close(flat(actual), flat(counterpart(theirs, sample, module, device)(*args)))
        if sample.reference_fn is not None and isinstance(args[0], torch.Tensor):
            torch.testing.assert_close(actual, sample.reference_fn(module, *args))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_factory_keywords(theirs, build, device, dtype):
    for module, _, _ in samples(theirs, build, device, dtype):
        assert {(p.dtype, p.device.type) for p in module.parameters()} == {(dtype, device)}
    if build is not theirs:  # torch.nn.RNN doesn't support skip_init
        module = torch.nn.utils.skip_init(build.func, 4, 8, device=device, dtype=dtype, **build.keywords)
        assert {(p.dtype, p.device.type) for p in module.parameters()} == {(dtype, device)}


def test_same_initialisation(theirs, build, device):
    for _, _, sample in samples(theirs, build, device):
        constructor = sample.constructor_input
        states = []
        for cls in (theirs, build):
            torch.manual_seed(7)
            states.append(cls(*constructor.args, **constructor.kwargs, device=device).state_dict())
        assert list(states[0]) == list(states[1])
        torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


def test_conversion_to_another_dtype_and_to_meta(theirs, build, device):
    for module, args, sample in samples(theirs, build, device):
        reference = counterpart(theirs, sample, module, device)
        for dtype in (torch.float32, torch.float64):
            x = [a.to(dtype) for a in args]
            expected = flat(reference.to(dtype)(*x))
            torch.testing.assert_close(flat(module.to(dtype)(*x)), expected)
        meta = module.to("meta").to_empty(device=device)
        meta.load_state_dict(reference.state_dict())
        torch.testing.assert_close(flat(meta(*x)), expected)


def test_repr(theirs, build, device):
    for module, _, sample in samples(theirs, build, device):
        suffix = getattr(build, "keywords", {}).get("backend")
        expected = repr(counterpart(theirs, sample, module, device))
        assert repr(module) == (expected[:-1] + f", backend={suffix})" if suffix else expected)


def copies(module):
    """The module after a round trip through each way of copying it."""
    yield copy.deepcopy(module)
    yield pickle.loads(pickle.dumps(module))
    for weights_only in (False, True):
        buffer = io.BytesIO()
        torch.save(module.state_dict() if weights_only else module, buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=weights_only)
        if weights_only:
            fresh = copy.deepcopy(module)
            with torch.no_grad():
                for p in fresh.parameters():
                    p.zero_()
            fresh.load_state_dict(loaded)
            loaded = fresh
        yield loaded


def test_pickle_deepcopy_save_and_load(theirs, build, device):
    for module, args, _ in samples(theirs, build, device):
        expected = flat(module(*args))
        for other in copies(module):
            assert repr(other) == repr(module)
            torch.testing.assert_close(flat(other(*args)), expected, rtol=0, atol=0)
            for p, q in zip(module.parameters(), other.parameters(), strict=True):
                assert p.data_ptr() != q.data_ptr() and p.requires_grad == q.requires_grad


def strided(tensor):
    """An equal tensor with gaps between its elements."""
    return torch.stack([tensor.detach(), torch.full_like(tensor, torch.nan)], -1)[..., 0]


def test_non_contiguous_arguments_and_parameters(theirs, build, device):
    for module, args, _ in samples(theirs, build, device):
        if not isinstance(args[0], torch.Tensor):
            continue
        outcomes = []
        for change in (torch.Tensor.detach, strided):
            other = copy.deepcopy(module)
            inputs = [change(a).requires_grad_() for a in args]
            for name, p in list(other.named_parameters()):
                setattr(other, name, torch.nn.Parameter(change(p)))
            out = flat(other(*inputs))
            grads = torch.autograd.grad([o.sin().sum() for o in out], [*inputs, *other.parameters()])
            outcomes.append([*out, *grads])
        torch.testing.assert_close(outcomes[1], outcomes[0])


def call_with(module, names, *tensors):
    """`module` as a function of its parameters and its arguments."""
    parameters = dict(zip(names, tensors, strict=False))
    return torch.func.functional_call(module, parameters, tensors[len(names) :])


@pytest.mark.sample(8)
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_gradients(theirs, build, device, check):
    for module, args, _ in samples(theirs, build, device, requires_grad=True):
        if not isinstance(args[0], torch.Tensor):
            continue
        names, params = zip(*module.named_parameters(), strict=True)
        assert check(partial(call_with, module, names), (*params, *args), check_batched_grad=True)


def test_memory_format(theirs, build, device):
    for module, args, _ in samples(theirs, build, device):
        expected = flat(module(*args))
        for memory_format in (torch.channels_last, torch.channels_last_3d, torch.contiguous_format):
            torch.testing.assert_close(flat(module.to(memory_format=memory_format)(*args)), expected)


def test_training_flag_is_read_only_where_torch_reads_it(theirs, build, device):
    for module, args, _ in samples(theirs, build, device):
        del module.training
        if INFOS[theirs].train_and_eval_differ:
            module.training = True
        module(*args)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_errors(theirs, build, device, dtype):
    info = INFOS[theirs]
    for error in info.module_error_inputs_func(info, device, dtype, False, True):
        constructor = error.module_error_input.constructor_input
        forward = error.module_error_input.forward_input
        with pytest.raises(error.error_type, match=error.error_regex):
            kwargs = {"device": device, "dtype": dtype, **constructor.kwargs}
            module = build(*constructor.args, **kwargs)
            assert error.error_on is ModuleErrorEnum.FORWARD_ERROR
            module(*forward.args, **forward.kwargs)
