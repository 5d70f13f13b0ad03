"""The support matrix: its tests exist, it is up to date, and what torch can't do it still can't."""

import signal
import subprocess
import sys

import pytest
import torch
from torch.export import Dim

from tests import support


@pytest.mark.parametrize("row", support.ROWS, ids=lambda row: row.feature)
def test_every_row_is_shown_by_a_test(row):
    assert {row.shown_by, row.theirs_shown_by} - {""} <= support.existing_tests()


def test_matrix_is_up_to_date():
    text = support.README.read_text()
    assert text == support.with_table(text), "run: python -m tests.support"


@pytest.fixture
def rnn():
    return torch.nn.RNN(3, 5)


def test_torch_can_t_compile(rnn):
    torch._dynamo.reset()
    with pytest.raises(Exception, match="does not support RNN"):
        torch.compile(rnn, fullgraph=True, backend="eager")(torch.zeros(4, 2, 3))


def test_torch_can_t_vmap(rnn):
    with pytest.raises(RuntimeError, match="Batching rule not implemented"):
        torch.func.vmap(rnn)(torch.zeros(6, 4, 2, 3))


def test_torch_can_t_compute_per_sample_gradients(rnn):
    def loss(parameters, x):
        return torch.func.functional_call(rnn, parameters, (x,))[0].sum()

    parameters = {name: p.detach() for name, p in rnn.named_parameters()}
    with pytest.raises(RuntimeError):
        torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, torch.zeros(6, 4, 3))


def test_torch_can_t_export_a_dynamic_length(rnn):
    dynamic = ({0: Dim("T", min=1, max=100), 1: Dim("B", min=1, max=100)},)
    with pytest.raises(Exception, match="Constraints violated"):
        torch.export.export(rnn.eval(), (torch.zeros(4, 2, 3),), dynamic_shapes=dynamic)


def test_torch_can_t_skip_init():
    with pytest.raises(RuntimeError, match="must support a 'device' arg"):
        torch.nn.utils.skip_init(torch.nn.RNN, 3, 5)


def run_alone(code):
    """What a program prints, in a process without rnnfast, which would change what is shown."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_torch_hangs_in_a_child_of_a_parallel_parent():
    code = """
import os, signal, torch
torch.set_num_threads(2)
x = torch.randn(1_000_000)
x.exp()
child = os.fork()
if child == 0:
    signal.alarm(3)
    x.exp()
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_alone(code) == str(-signal.SIGALRM)


@pytest.mark.slow
@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU can't flush subnormal numbers")
def test_torch_flushes_on_the_calling_thread_alone():
    code = """
import torch
torch.set_num_threads(2)
x = torch.full((1_000_000,), 1e-39)
torch.add(x, 0)  # makes the threads, in the usual mode
torch.set_flush_denormal(True)
values = torch.add(x, 0)
torch.set_flush_denormal(False)
print(0 < int((values == 0).sum()) < len(x))
"""
    assert run_alone(code) == "True"
