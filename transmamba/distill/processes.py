"""The end of a process that took part in a process group."""

import atexit
import functools
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn, ParamSpec

import torch.distributed as dist

P = ParamSpec("P")


def ends_process(main: Callable[P, object]) -> Callable[P, NoReturn]:
    """Decorate the last function of a distributed program: the process group and the process end with it.

    After `main`, all processes meet at a barrier, so that none leaves while another still writes. Then the group is
    destroyed, threads are joined, `atexit` callbacks run, output is flushed, and the process leaves by `os._exit`,
    because finalising the interpreter can abort it: `destroy_process_group` does not stop gloo's worker threads. One
    that drops its last tensor meanwhile ends the process with SIGABRT, "terminate called without an active exception"
    (pytorch#190489); from Python 3.14 on it leaves the process hanging. An error is printed as usual, and the exit code
    is Python's: 1, or the one given to `sys.exit`.

    Use it in scripts, also under torchrun, and on the function that `torch.multiprocessing.spawn` starts. The process
    ends without a process group as well.

    Example:
        >>> @ends_process
        ... def main():
        ...     "dist.init_process_group(), train, save"
    """

    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> NoReturn:
        code = 0
        try:
            main(*args, **kwargs)
            if dist.is_available() and dist.is_initialized():
                dist.barrier()
                dist.destroy_process_group()
        except BaseException as error:  # noqa: BLE001 - nobody else is left to report it
            code = _report(error)
        _leave(code)

    return wrapper


def _report(error: BaseException) -> int:
    """Print `error` as the interpreter would, and return its exit code."""
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    sys.excepthook(type(error), error, error.__traceback__)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _leave(code: int) -> NoReturn:
    # the steps of the interpreter before it finalises, in its order
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):  # a closed pipe, a closed file
            code = code or 120
    os._exit(code)
