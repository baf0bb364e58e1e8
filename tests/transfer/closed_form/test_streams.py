"""Which parts of a block the closed forms read."""

import torch
from torch import nn

from transmamba.transfer.closed_form.streams import hooked, readout_of, watch


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.in_proj, self.out_proj, self.gate = nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.out_proj(self.in_proj(x)), x


def test_the_readout_has_a_known_name_or_is_the_last_linear_layer():
    mixer = Mixer()
    assert readout_of(mixer) is mixer.out_proj
    layers = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.GELU())
    assert readout_of(layers) is layers[1]


def test_of_several_outputs_the_first_is_kept():
    mixer, x, found = Mixer(), torch.randn(1, 2), {}
    with hooked(watch(mixer, found, "mixed"), watch(mixer.gate, found, "gate")):
        y, _ = mixer(x)
        gate = mixer.gate(x)
    assert found["mixed"] is y and found["gate"] is gate
