"""Float32 products on the GPU follow what cuDNN's RNNs are allowed, and the process's setting comes back."""

import pytest
import torch

from rnnfast.backends.precision import products_as_cudnn, tf32


@pytest.fixture(autouse=True)
def settings():
    cudnn, matmul = torch.backends.cudnn.rnn.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cudnn.rnn.fp32_precision = cudnn
    torch.backends.cuda.matmul.fp32_precision = matmul


def test_torch_allows_tf32_in_rnns_unless_told_otherwise():
    assert tf32()


@pytest.mark.parametrize("setting", ["tf32", "ieee"])
@pytest.mark.parametrize("before", ["tf32", "ieee"])
def test_within_products_are_as_cudnn_s(setting, before):
    torch.backends.cudnn.rnn.fp32_precision = setting
    torch.backends.cuda.matmul.fp32_precision = before
    assert tf32() == (setting == "tf32")
    with products_as_cudnn(torch.float32):
        assert torch.backends.cuda.matmul.fp32_precision == setting
    with products_as_cudnn(torch.bfloat16):  # which the setting does not concern
        assert torch.backends.cuda.matmul.fp32_precision == before
    assert torch.backends.cuda.matmul.fp32_precision == before
    with pytest.raises(KeyError), products_as_cudnn(torch.float32):
        raise KeyError
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_the_older_setting_is_obeyed():
    for wanted in (False, True):
        # torch's own test classes, once imported, forbid to set it in any other way.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=wanted):
            assert tf32() == wanted
