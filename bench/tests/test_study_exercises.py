"""The answers to the exercises of the study ladder."""

from __future__ import annotations

import math

import torch

from bench.study.problem import Shape, make
from rnnfast import reference

SHAPE = Shape(6, 3, 4, 5)


def test_exercise_0():
    """28 * 256 + 256 * 256 + 256 parameters, and T is not among the factors; B H (I + H) multiply-adds."""
    inputs, hidden, batch = 28, 256, 32
    p = make(Shape(1, batch, inputs, hidden))
    assert p.w_ih.numel() + p.w_hh.numel() + p.b.numel() == hidden * (inputs + hidden) + hidden == 72_960
    assert batch * hidden * (inputs + hidden) == 2_326_528


def test_exercise_1():
    """Only the sum of the two biases counts, so either can be left out if the other takes over its value."""
    p = make(SHAPE)
    b_ih, b_hh = p.b / 3, p.b - p.b / 3
    both, _ = reference.rnn_sequence(p.x, p.h0, p.w_ih, p.w_hh, b_ih, b_hh)
    one, _ = reference.rnn_sequence(p.x, p.h0, p.w_ih, p.w_hh, b_ih + b_hh)
    torch.testing.assert_close(both, one)


def test_exercise_2():
    """Both input products leave their loops: the second layer's comes after the first layer's loop."""
    p, q = make(SHAPE), make(Shape(6, 3, 5, 5), seed=1)

    def layer(x, r):
        a, h, out = torch.nn.functional.linear(x, r.w_ih, r.b), r.h0, []
        for a_t in a:
            h = torch.tanh(torch.addmm(a_t, h, r.w_hh.t()))
            out.append(h)
        return torch.stack(out)

    together, states = [], [p.h0, q.h0]
    for x_t in p.x:  # step by step through both layers
        below = x_t
        for i, r in enumerate((p, q)):
            below = states[i] = torch.tanh(below @ r.w_ih.t() + states[i] @ r.w_hh.t() + r.b)
        together.append(below)
    torch.testing.assert_close(layer(layer(p.x, p), q), torch.stack(together))


def test_exercise_3():
    """A sum in the order of k is a chain, and floating-point addition doesn't allow another order: the
    compiler may not cut it into lanes. Rung 3 adds in the same order, but makes many sums side by side."""
    values = torch.tensor([1e8, 1.0, -1e8, 1.0])
    chain, lanes = values.new_zeros(()), values.new_zeros(2)
    for value in values:
        chain = chain + value
    for pair in values.view(2, 2):
        lanes = lanes + pair
    assert (chain.item(), lanes.sum().item()) == (1.0, 2.0)


def test_exercise_4():
    """R + N loads for R N multiply-adds; where as many loads as multiply-adds start, 9 for 8 are
    one too many; 6 for 8 and 14 for 24 are not."""
    loads = {tile: sum(tile) / math.prod(tile) for tile in ((1, 8), (4, 2), (12, 2))}
    assert loads[1, 8] > 1 > loads[4, 2] > loads[12, 2]


def test_exercise_5():
    """`x < 0 ? 0 : x`: a comparison with NaN is false."""
    nan = math.nan
    assert (nan if nan > 0 else 0.0) == 0.0
    assert math.isnan(0.0 if nan < 0 else nan) and torch.relu(torch.tensor(nan)).isnan()


def test_exercise_6():
    """Half of H^2 multiply-adds equal a barrier at sqrt(2 rate barrier): at 75 a ns and 85 ns, 113."""
    rate, barrier = 75.0, 85.0
    hidden = math.sqrt(2 * rate * barrier)
    assert round(hidden) == 113 and math.isclose(hidden**2 / 2 / rate, barrier)


def test_exercise_7a():
    """relu' = [h > 0]: h is positive just where its argument was."""
    a = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    h = torch.relu(a)
    (gradient,) = torch.autograd.grad(h.sum(), a)
    assert torch.equal(gradient, (h > 0).double())


def test_exercise_7b():
    """None of them shrinks: g_t is nonzero for all steps. A step multiplies its norm by c."""
    c, steps = 0.5, 6
    orthogonal, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    x, h0, w_ih = torch.zeros(steps, 3, 4).double(), torch.zeros(3, 5).double(), torch.zeros(5, 4).double()
    state = h0.clone().requires_grad_()
    out, _ = reference.rnn_sequence(x, state, w_ih, c * orthogonal)
    last = torch.randn(3, 5, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(out[-1], state, last)
    torch.testing.assert_close(gradient.norm(), last.norm() * c**steps)
