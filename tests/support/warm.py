"""Fresh processes that need not import the engine: they are forked from one that has.

Importing it and the first capture and export of a process take seven seconds. ``run`` and
``Process`` do what ``subprocess.run`` and ``subprocess.Popen`` do with ``[sys.executable, *args]``,
in a fork of a process that has done nothing else yet: what the program sees is that of a new
interpreter, but that the packages of ``warm_up`` are imported and random numbers begin anew.
One such process serves a test process and the servers it starts; run as a program, this file is it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

PYTHON = sys.executable
ADDRESS = "WORKBENCH_WARM_PROCESS"
"""The variable that tells servers started by a test process where its warm process listens."""


class Process:
    """A Python process: ``Process(["-m", "package", "argument"], cwd=…, env=…, stderr=file)``.

    Of ``subprocess.Popen`` it has what is needed to wait for it and to end it. It leads a process
    group of its own. Streams are files or descriptors, ``subprocess.DEVNULL`` or ``None`` for ours.
    """

    stdin = stdout = stderr = None

    def __init__(
        self,
        args: Sequence[str],
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
    ) -> None:
        self.args = [PYTHON, *map(str, args)]
        self.returncode: int | None = None
        request = {
            "args": self.args[1:],
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
        }
        self._channel = socket.socket(socket.AF_UNIX)
        self._channel.connect(address())
        with contextlib.ExitStack() as stack:
            streams = [_descriptor(s, i, stack) for i, s in enumerate((stdin, stdout, stderr))]
            socket.send_fds(self._channel, [json.dumps(request).encode() + b"\n"], streams)
        said = b""
        while not said.endswith(b"\n"):  # and not more: how it ends follows
            said += self._channel.recv(1)
        self.pid = int(said)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            # A timeout of zero would make a socket that never blocks.
            self._channel.settimeout(timeout if timeout is None else max(timeout, 1e-4))
            try:
                said = self._channel.recv(64)
            except TimeoutError:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0) from None
            # Without a word, who looks after it was killed, and it with him.
            self.returncode = os.waitstatus_to_exitcode(int(said or signal.SIGKILL))
            self._channel.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def subprocess_of_forks() -> Any:
    """To stand for the module ``subprocess``: Python programs are forked from the warm process."""

    def popen(command: Sequence[str], **options: Any) -> Any:
        if command[0] != PYTHON:
            return subprocess.Popen(command, **options)
        options.pop("start_new_session", None)
        return Process(command[1:], **options)

    return types.SimpleNamespace(**{**vars(subprocess), "Popen": popen})


def run(
    args: Sequence[str],
    *,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 300.0,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; what it wrote is text, as with ``capture_output`` and ``text``."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = Process(
            args, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err
        )  # fmt: skip
        try:
            code = process.wait(timeout)
        except BaseException:
            process.kill()
            raise
        done = subprocess.CompletedProcess(process.args, code, _text(out), _text(err))
    if check:
        assert code == 0, done.stderr
    return done


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode()


def _descriptor(stream: Any, standard: int, stack: contextlib.ExitStack) -> int:
    if stream is None:
        return standard
    if stream == subprocess.DEVNULL:
        return stack.enter_context(open(os.devnull, "r+b")).fileno()
    return stream if isinstance(stream, int) else int(stream.fileno())


@functools.cache
def address() -> str:
    """Where the warm process listens. It ends with the test process that has started it."""
    if ADDRESS not in os.environ:
        folder = tempfile.mkdtemp()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORKBENCH_LANGUAGE": "en"}
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                [PYTHON, __file__, f"{folder}/warm"], env=environment, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
            )  # fmt: skip
            assert process.stdout is not None
            ready = process.stdout.readline()
            # Its forks can no longer say what an import or the first export would.
            assert ready and not _text(said), f"the warm process said:\n{_text(said)}"
        _owned.append(process)
        os.environ[ADDRESS] = f"{folder}/warm"
    return os.environ[ADDRESS]


_owned: list[subprocess.Popen[bytes]] = []


# -- in the warm process --------------------------------------------------------------------------


def warm_up() -> None:
    """Import what the programs need; the first capture and export read tables of torch."""
    import torch

    import workbench.cli.commands
    import workbench.studio.running
    import workbench.studio.tasks
    import workbench.studio.workspace
    import workbench.zoo.data  # noqa: F401
    from workbench import engine
    from workbench.engine.export import timing

    timing.SECONDS = 0.0  # as in conftest.py

    torch.set_num_threads(1)
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        net, x = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3)), torch.rand(2, 1, 8, 8)
        files = [f"{folder}/{name}" for name in ("config", "onnx", "record")]
        engine.create_quant_config(files[0], net, (x,))
        engine.quantize_model(*files, net, (x,))(x)
        engine.save_model(files[1], files[2], f"{folder}/out")


def _serve(address: str) -> None:
    """Fork for each who connects, until the standard input ends."""
    path = [entry for entry in sys.path if entry != str(Path(__file__).parent)]
    warm_up()
    for module in list(sys.modules.values()):
        vars(module).get("__warningregistry__", {}).clear()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            for ready in select.select([listener, sys.stdin], [], [])[0]:
                if ready is sys.stdin:
                    return
                channel, _ = listener.accept()
                if not os.fork():
                    listener.close()
                    _look_after(channel, path)
                channel.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _look_after(channel: socket.socket, path: list[str]) -> None:
    """In a process of its own: start the program, say its number, and how it ended."""
    asked, streams, *_ = socket.recv_fds(channel, 1 << 16, 3)
    while not asked.endswith(b"\n"):
        asked += channel.recv(1 << 16)
    child = os.fork()
    if not child:
        channel.close()
        os.setpgid(0, 0)
        for standard, stream in enumerate(streams):
            os.dup2(stream, standard)
            os.close(stream)
        os._exit(_become(json.loads(asked), path))
    for stream in streams:
        os.close(stream)
    with contextlib.suppress(OSError):  # the child has done it, or is even gone
        os.setpgid(child, child)
    with contextlib.suppress(BrokenPipeError):
        channel.sendall(f"{child}\n".encode())
        status = os.waitpid(child, 0)[1]
        channel.sendall(str(status).encode())
    os._exit(0)


def _become(request: Mapping[str, Any], path: list[str]) -> int:
    """Be the interpreter with these arguments; the exit code."""
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    time.tzset()
    torch = sys.modules["torch"]
    for reseed in (random.seed, sys.modules["numpy"].random.seed, torch.seed):
        reseed()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    # A shell in the background ignores interrupts, and so does what it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    option, *arguments = request["args"]
    program: Callable[[], object]
    if option == "-c":
        first, text = "", arguments.pop(0)
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        program = lambda: exec(compile(text, "<string>", "exec"), vars(main))
    elif option == "-m":
        first, option = os.getcwd(), arguments.pop(0)
        program = lambda: runpy.run_module(option, run_name="__main__", alter_sys=True)
    else:
        first = str(Path(option).resolve().parent)
        program = lambda: runpy.run_path(option, run_name="__main__")
    more = request["env"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [first, *(entry for entry in more if entry), *path]
    sys.argv = [option, *arguments]
    code = _exit_code(program)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _exit_code(program: Callable[[], object]) -> int:
    try:
        program()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    _serve(sys.argv[1])
    shutil.rmtree(Path(sys.argv[1]).parent)
    os._exit(0)
