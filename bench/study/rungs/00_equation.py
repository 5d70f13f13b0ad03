r"""Rung 0: the equation as it is written down.

    h_t = tanh([x_t, h_{t-1}] . [W_ih, W_hh]^T + b)        x_t [B, I], h [B, H], W_ih [H, I], W_hh [H, H]

One Python loop over the steps; every step calls three operators of torch's, and each hands a whole matrix
to the next:

      x_t   h_{t-1}
        \   /
         cat --> [B, I + H] --> product with W [H, I + H] --> [B, H] --> tanh --> h_t
                 a copy                                       memory      memory

Floor: a step has B H (I + H) multiply-adds, and W is read once. Above the floor: what a call of an operator
costs before it computes anything, and the copy by which cat puts x_t and h_{t-1} side by side.
"""

import torch


def forward(x, h0, w_ih, w_hh, b):  # x [T, B, I], h0 [B, H], b [H]
    w = torch.cat([w_ih, w_hh], dim=1)  # [H, I + H], once
    h, out = h0, []
    for x_t in x:
        z = torch.cat([x_t, h], dim=1)  # [B, I + H]
        h = torch.tanh(torch.nn.functional.linear(z, w, b))
        out.append(h)
    return torch.stack(out)  # [T, B, H]


# Exercise 0. A model has I = 28 inputs and H = 256 units. How many parameters has this layer, for sequences
# of 35 steps and for sequences of 1000? How many multiply-adds does a step take for B = 32? (test_exercise_0)
