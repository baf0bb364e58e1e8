"""Threads, processes, copies and compilation: the same numbers as alone."""

import copy
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.contracts.backbones import BACKBONES, build
from transmamba import nn as tnn
from transmamba.distill import LayerCalibrators, match_layers, sample_tokens, tap
from transmamba.models import Vim, ViT
from transmamba.ops import causal_conv1d, multi_scan, scan_order, scan_orders
from transmamba.transfer import Architecture, magnitude_importance, plan_for, subclone

ROOT = Path(__file__).parents[2]
IMPORTS = """
import threading
import torch  # its own import is torch's affair
errors, start = [], threading.Barrier(8)
def load(statement):
    start.wait()
    try:
        exec(statement)
    except BaseException as error:
        errors.append(f"{statement}: {type(error).__name__}: {error}")
names = ["nn", "models", "distill", "transfer", "ops", "selective_scan", "subclone"]
statements = ["import transmamba", *(f"from transmamba import {name}" for name in names)]
threads = [threading.Thread(target=load, args=(statement,)) for statement in statements]
[thread.start() for thread in threads]
[thread.join(60) for thread in threads]
print(errors + [thread.name for thread in threads if thread.is_alive()])
"""


def in_threads(count, work):
    """Return the result of `work(number)` in each of so many threads that start together."""
    results, errors, start = [None] * count, [], threading.Barrier(count)

    def run(number):
        start.wait()
        try:
            results[number] = work(number)
        except BaseException as error:  # noqa: BLE001 - told to the main thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors, errors
    assert not any(thread.is_alive() for thread in threads), "threads wait for each other"
    return results


def scan(seed=0, length=33):
    """Run two directions, convolution and scan, forward and backward; return one tensor of numbers."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(2, length, 5, generator=generator, requires_grad=True)
    orders = scan_orders(("forward", "backward"), length)
    x = causal_conv1d(u, torch.ones(2, 5, 4), orders=orders, activation="silu")
    B = torch.randn(2, 1, length, 3, generator=generator)
    y = multi_scan(x, x, -torch.ones(2, 5, 3), B, B, softplus=True, orders=orders, merge=True)
    y.square().sum().backward()
    return torch.cat([y.detach().flatten(), u.grad.flatten()])


def test_many_threads_may_import_the_package_at_once():
    """`import transmamba.ops` in several threads, before any has the package, is more than CPython's import can do."""
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_threads_scan_as_if_they_were_alone():
    expected = [scan(seed) for seed in range(6)]
    for _ in range(5):
        for number, got in enumerate(in_threads(6, scan)):
            assert torch.equal(got, expected[number])


@pytest.mark.parametrize("name", BACKBONES)
def test_threads_share_a_model(name):
    model, x = build(name)
    expected = model(x)
    assert all(torch.equal(got, expected) for got in in_threads(4, lambda _: model(x)))


def test_the_check_at_the_border_is_each_threads_own():
    def call(number):
        for _ in range(50):
            if number % 2:
                with pytest.raises(TypeError):
                    scan_order(None, 3)
            else:
                assert scan_order("backward", 3).index.tolist() == [2, 1, 0]
        return True

    assert all(in_threads(6, call))


class Scans(Dataset):
    """Numbers that are made by scanning, wherever the loader runs."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return scan(index)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_of_a_loader_scan(method):
    expected = torch.stack([scan(index) for index in range(6)])  # the parent has loaded the library and its threads
    workers = {"fork": 2, "spawn": 1}[method]
    loader = DataLoader(Scans(), batch_size=3, num_workers=workers, multiprocessing_context=method, timeout=120)
    assert torch.equal(torch.cat(list(loader)), expected)


def test_a_thread_that_scanned_does_not_hinder_a_fork():
    in_threads(2, scan)
    expected, read, write = scan(), *os.pipe()
    child = os.fork()
    if not child:  # no assertion may reach pytest from here
        os.write(write, b"1" if torch.equal(scan(), expected) else b"0")
        os._exit(0)
    os.close(write)
    assert os.read(read, 1) == b"1"
    os.waitpid(child, 0)


def _reports():
    teacher, student = ViT(8, 4, dim=12, depth=2, heads=3, num_classes=5), Vim(8, 4, dim=12, depth=1, num_classes=5)
    report = subclone(teacher, student, magnitude_importance)
    return [report, plan_for(teacher, student), Architecture("image", 12, 2), sample_tokens(7, 3),
            scan_order("snake", (2, 3)), match_layers(2, 4, "proportional")]  # fmt: skip


@pytest.mark.parametrize("report", _reports(), ids=lambda report: type(report).__name__)
def test_reports_and_records_are_copied_and_pickled(report):
    for other in (copy.deepcopy(report), pickle.loads(pickle.dumps(report))):
        assert type(other) is type(report) and str(other) == str(report)


MODULES = {
    "MambaMixer": lambda: tnn.MambaMixer(6, 3, directions=2),
    "Mamba2Mixer": lambda: tnn.Mamba2Mixer(6, 3, head_dim=4),
    "Mamba3Mixer": lambda: tnn.Mamba3Mixer(6, 4, head_dim=4),
    "MambaBlock": lambda: tnn.MambaBlock(6),
    "CrossMamba": lambda: tnn.CrossMamba(6, 6, bidirectional=True),
    "calibrators": lambda: LayerCalibrators([6, 6], 9).layers[0],
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_copied_pickled_and_assigned(name):
    torch.manual_seed(0)
    module, x = MODULES[name](), torch.randn(2, 5, 6)

    def call(module):
        return module(x, x) if name == "CrossMamba" else module(x)

    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(call(other), call(module))
    with torch.device("meta"):
        empty = MODULES[name]()
    assert all(p.is_meta for p in empty.parameters())
    empty.load_state_dict(module.state_dict(), assign=True)
    assert torch.equal(call(empty), call(module))
    assert all(p.data_ptr() == q.data_ptr() for p, q in zip(empty.parameters(), module.parameters(), strict=True))


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_on_the_meta_device_know_their_shapes(name):
    model, x = build(name)
    assert model.to("meta")(x.to("meta")).shape == (2, 5)


def test_compiling_inside_a_tap_hears_the_blocks_and_afterwards_is_an_error():
    model, x = build("vim")
    with tap(model, "blocks.*") as features:
        eager = model(x)
        expected = [feature.clone() for feature in features.layers]
    torch._dynamo.reset()
    with tap(model, "blocks.*") as features:
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(compiled(x), eager)
        torch.testing.assert_close(features.layers, expected)
    with pytest.raises(RuntimeError, match="is compiled and would ignore the tap"), tap(compiled, "**blocks.*"):
        pass


STEPS = """
import sys, torch
torch.set_num_threads(int(sys.argv[1]))
torch.use_deterministic_algorithms(True)
torch.manual_seed(0)
from tests.contracts.backbones import build
numbers = []
for name in sys.argv[2:]:
    model, x = build(name)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-3, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    numbers += [p.detach().double().sum().item().hex() for p in model.parameters()]
print(*numbers)
"""


def trained(threads, *names):
    done = subprocess.run(
        [sys.executable, "-c", STEPS, str(threads), *names], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return [float.fromhex(number) for number in done.stdout.split()]


def test_training_in_deterministic_mode_repeats_itself_bit_for_bit():
    """Two threads may add in another order inside torch: then equal up to rounding."""
    names = ["vision_mamba", "plain_mamba", "vmamba_v2"]
    alone = trained(1, *names)
    assert trained(1, *names) == alone
    torch.testing.assert_close(trained(2, *names), alone, atol=1e-4, rtol=1e-4)
