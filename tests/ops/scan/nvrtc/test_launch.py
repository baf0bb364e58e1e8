"""The way to the GPU without one: a driver that records calls, the cache of compiled kernels, the refusals."""

import ctypes
import multiprocessing
import types
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from tests.ops.scan.triton.triton_cases import problem
from transmamba.ops.scan import nvrtc
from transmamba.ops.scan.nvrtc import compiler, driver
from transmamba.ops.scan.nvrtc.arguments import Arguments, Strided, strided
from transmamba.ops.scan.nvrtc.driver import Launch
from transmamba.ops.scan.nvrtc.variants import Shape, Variant

STREAM = 0x5EED


class FakeDriver:
    """libcuda, as far as it is called: writes handles where asked, records, and fails where told to."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.failing = self.context = None

    def __getattr__(self, name: str):
        def call(*arguments):
            if name == "cuGetErrorString":
                arguments[1]._obj.value = b"an illegal memory access was encountered"
                return 0
            self.calls.append((name, *arguments))
            if name == self.failing:
                return 700
            if name == "cuCtxGetCurrent":
                arguments[0]._obj.value = self.context
            elif name in ("cuDevicePrimaryCtxRetain", "cuModuleLoadData", "cuModuleGetFunction"):
                arguments[0]._obj.value = 0xF00 + len(self.calls)
            elif name == "cuLaunchKernel":
                # what the driver would copy at this moment
                address = arguments[9][0]
                self.copied = Arguments.from_buffer_copy(ctypes.string_at(address, ctypes.sizeof(Arguments)))
            return 0

        return call

    def named(self, name: str) -> list[tuple]:
        return [call for call in self.calls if call[0] == name]


@pytest.fixture
def gpu(monkeypatch):
    """Put a fake driver under torch's own calls, and a compiler that returns a few bytes."""
    fake = FakeDriver()
    monkeypatch.setattr(driver, "library", lambda: (fake, ""))
    monkeypatch.setattr(driver, "capability", lambda device: "90")
    monkeypatch.setattr(driver, "cached_cubin", lambda options, capability: b"cubin")
    monkeypatch.setattr(torch.cuda, "device", lambda device: types.SimpleNamespace(__enter__=None))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: types.SimpleNamespace(cuda_stream=STREAM))

    class Guard:
        def __init__(self, device):
            pass

        __enter__ = __exit__ = lambda self, *rest: None

    monkeypatch.setattr(torch.cuda, "device", Guard)
    driver._function.cache_clear()
    yield fake
    driver._function.cache_clear()


def run(p, gpu, monkeypatch):
    """Run forward and backward of a problem with CPU tensors on the fake driver."""
    monkeypatch.setattr(nvrtc, "multiprocessors", lambda device: 1)
    y, last, saved = nvrtc.forward(p, True)
    nvrtc.backward(p, saved, torch.ones_like(y), None)
    return y, last, saved


def test_a_scan_loads_its_kernels_once_and_launches_on_the_current_stream(gpu, monkeypatch):
    p = problem(n=16, d=40, k=2, length=19, initial=True)
    run(p, gpu, monkeypatch)
    run(p, gpu, monkeypatch)
    assert [call[3] for call in gpu.named("cuModuleGetFunction")] == [b"scan_forward", b"scan_backward"]
    launches = gpu.named("cuLaunchKernel")
    assert len(launches) == 4
    forward, backward = launches[:2]
    # (function, grid, block, shared memory, stream, arguments)
    assert forward[2:5] == (2, 2, 1) and forward[5:8] == (128, 1, 1) and forward[8] == 0
    assert backward[2:5] == (2, 1, 1) and backward[5:8] == (128, 1, 1) and backward[8] > 30000
    assert all(launch[9].value == STREAM for launch in launches)


def test_arguments_are_the_tensors_own_addresses_and_strides(gpu, monkeypatch):
    p = problem(n=16, d=40, k=2, length=19, initial=True)
    monkeypatch.setattr(nvrtc, "multiprocessors", lambda device: 1)
    y, last, saved = nvrtc.forward(p, True)
    found = gpu.copied
    assert found.u.at == p.u.data_ptr() and (found.u.direction, found.u.token, found.u.column) == (0, 40, 1)
    assert found.y.at == y.data_ptr() and (found.y.batch, found.y.direction) == (2 * 19 * 40, 19 * 40)
    assert found.A == p.A.data_ptr() and found.A_direction == 16 * 40
    assert (found.last, found.saved, found.enter) == (last.data_ptr(), saved.data_ptr(), p.initial_state.data_ptr())
    assert (found.K, found.L, found.channels, found.span, found.spans) == (2, 19, 40, 32, 1)
    assert found.restart is None and found.dA is None


def test_more_shared_memory_than_usual_is_asked_for(gpu):
    variant = Variant("backward", 0, 16, Shape(4, 2, 4, 8, 8, 3), ())
    driver.launch(variant.options, "scan_backward", Launch((1, 1, 1), 128, 50000), Arguments(), torch.device("cuda"))
    (call,) = gpu.named("cuFuncSetAttribute")
    assert call[2:] == (8, 50000)


def test_the_cache_is_below_the_home_folder_unless_said_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert compiler.cache_folder() == tmp_path / "xdg" / "transmamba" / "nvrtc"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compiler.cache_folder() == tmp_path / ".cache" / "transmamba" / "nvrtc"


@pytest.mark.parametrize("shared", [0, 49152, 49153])
def test_up_to_48_kilobytes_a_block_has_without_asking(gpu, shared):
    driver.launch((), f"chain {shared}", Launch((1, 1, 1), 32, shared), Arguments(), torch.device("cuda"))
    assert len(gpu.named("cuFuncSetAttribute")) == (shared > 49152)
    assert gpu.named("cuLaunchKernel")[0][8] == shared


def test_a_launch_has_no_shared_memory_by_default():
    assert Launch((1, 1, 1), 32).shared == 0


@pytest.mark.parametrize("context", [None, 0xC0])
def test_a_thread_without_a_context_takes_that_of_torch(gpu, context):
    gpu.context = context
    driver.launch((), "chain", Launch((1, 1, 1), 32), Arguments(), torch.device("cuda"))
    assert len(gpu.named("cuCtxSetCurrent")) == (context is None)


def test_errors_of_the_driver_are_in_words(gpu):
    gpu.failing = "cuLaunchKernel"
    with pytest.raises(driver.DriverError, match=r"refused cuLaunchKernel: an illegal memory access .* \(error 700\)"):
        driver.launch((), "chain", Launch((1, 1, 1), 32), Arguments(), torch.device("cuda"))


def test_a_missing_driver_is_said(monkeypatch):
    driver.library.cache_clear()
    monkeypatch.setattr(driver, "NAMES", ("libno-such-cuda.so",))
    assert "the NVIDIA driver was not found (libno-such-cuda.so): install it" in driver.library()[1]
    with pytest.raises(driver.DriverError, match="the NVIDIA driver was not found"):
        driver._call("cuInit", 0)
    driver.library.cache_clear()


def test_a_missing_compiler_is_said(monkeypatch):
    compiler.library.cache_clear()
    monkeypatch.setattr(compiler, "_candidates", lambda: iter(["libno-such-nvrtc.so"]))
    with pytest.raises(
        compiler.CompileError, match="was not found: install it with pip install nvidia-cuda-nvrtc-cu12"
    ):
        compiler.version()
    compiler.library.cache_clear()


needs_nvrtc = pytest.mark.skipif(compiler.library()[0] is None, reason=compiler.library()[1])


@needs_nvrtc
def test_errors_of_the_compiler_show_its_log(monkeypatch):
    monkeypatch.setattr(compiler, "sources", lambda: {"scan.cu": "int x = missing;"})
    with pytest.raises(compiler.CompileError, match=r"(?s)for sm_90 with -DX=1\n.*identifier \"missing\" is undefined"):
        compiler.compile_cubin(["-DX=1"], "90")
    with pytest.raises(compiler.CompileError, match="invalid value for --gpu-architecture"):
        compiler.compile_cubin([], "12345")
    monkeypatch.setattr(
        compiler, "sources", lambda: {"scan.cu": "".join(f"int x{i} = missing{i};\n" for i in range(30))}
    )
    with pytest.raises(compiler.CompileError) as caught:
        compiler.compile_cubin(["-DX=1"], "90")
    assert str(caught.value).count("\n") == 20


def test_the_sources_are_cuda_files():
    names = set(compiler.sources())
    assert "scan.cu" in names and {name.rpartition(".")[2] for name in names} == {"cu", "h"}


def test_the_newest_library_of_a_wheel_comes_first(monkeypatch, tmp_path):
    (folder := tmp_path / "cuda" / "lib").mkdir(parents=True)
    for name in ("libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc-builtins.so.13", "libnvrtc.alt.so.13"):
        (folder / name).touch()
    place = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: place)
    found = [str(folder / f"libnvrtc.so.{number}") for number in (13, 12)]
    assert list(compiler._candidates())[:3] == [*found, "libnvrtc.so"]


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Set up an empty cache, and a compiler that counts its calls."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def compile_cubin(options, capability):
        calls.append((tuple(options), capability))
        return b"machine code"

    monkeypatch.setattr(compiler, "compile_cubin", compile_cubin)
    monkeypatch.setattr(compiler, "version", lambda: "12.9")
    return calls


def test_what_was_compiled_is_read_from_the_cache(cache, monkeypatch):
    for _ in range(2):
        assert compiler.cached_cubin(["-DX=1"], "90") == b"machine code"
    assert len(cache) == 1
    compiler.cached_cubin(["-DX=2"], "90")
    compiler.cached_cubin(["-DX=1"], "80")
    monkeypatch.setattr(compiler, "version", lambda: "13.0")
    compiler.cached_cubin(["-DX=1"], "90")
    monkeypatch.setattr(compiler, "sources", lambda: {"scan.cu": "changed"})
    compiler.cached_cubin(["-DX=1"], "90")
    assert len(cache) == 5


def test_a_spoilt_entry_is_compiled_again(cache):
    compiler.cached_cubin([], "90")
    (path,) = compiler.cache_folder().iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    assert compiler.cached_cubin([], "90") == b"machine code"
    assert len(cache) == 2
    assert compiler.cached_cubin([], "90") == b"machine code" and len(cache) == 2


def test_a_cache_that_cannot_be_written_is_done_without(cache, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compiler.cached_cubin([], "90") == b"machine code"


def _fill(folder: str) -> set[bytes]:
    compiler.cache_folder = lambda: folder
    compiler.version = lambda: "12.9"
    compiler.compile_cubin = lambda options, capability: options[0].encode() * 100000
    return {compiler.cached_cubin([f"-D{i % 3}"], "90")[:3] for i in range(60)}


def test_processes_may_fill_the_cache_at_the_same_time(tmp_path):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for found in pool.map(_fill, [tmp_path] * 2):
            assert found == {b"-D0", b"-D1", b"-D2"}
    assert len(list(tmp_path.iterdir())) == 3


def test_refusals_have_their_reasons(monkeypatch):
    p = problem(n=3)
    assert nvrtc.unsupported_reasons(p) == [f"needs a CUDA tensor, u is on {p.u.device}"]
    wide = p._replace(A=torch.zeros(3, 257, 5), u=p.u.double())
    expected = ["computes in float32 and does not take float64", "takes 1 to 256 states per channel, got 257"]
    assert nvrtc.unsupported_reasons(wide)[1:] == expected
    monkeypatch.setattr(compiler, "library", lambda: (None, "no compiler"))
    monkeypatch.setattr(driver, "library", lambda: (None, "no driver"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    old = "needs an NVIDIA GPU of compute capability 8.0 or higher"
    assert nvrtc.incapable(0) == ("no compiler", "no driver", old)


def test_a_stride_of_a_shared_direction_is_zero():
    assert strided(torch.zeros(2, 1, 3, 4)).direction == 0
    assert isinstance(strided(torch.zeros(2, 3, 3, 4)), Strided)


def test_a_device_on_which_nothing_loads_is_a_reason_not_a_crash(gpu):
    driver.trial.cache_clear()
    assert driver.trial(1) == ()
    driver.trial.cache_clear()
    gpu.failing = "cuModuleLoadData"
    assert driver.trial(1)[0].startswith(
        "a trial on cuda:1 failed: the CUDA driver refused cuModuleLoadData: an illegal"
    )
    driver.trial.cache_clear()
