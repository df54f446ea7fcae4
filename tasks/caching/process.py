"""Stage bodies in processes of their own: side by side on all cores, and gone when done.

A fork server imports torch and the chapters once; each body runs in a fresh fork of it, which
takes milliseconds.  Threads would share Python's lock, and a fork of this process could inherit
torch's threads in an unknown state.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess, parent_process
from pathlib import Path
from typing import Any

from tasks.caching import bodies, machine
from tasks.caching.basics import CommonError, LadderError, StageError, StoppedError, spelled
from tasks.caching.bodies import CORES, Body, Runner
from tasks.caching.yielding import yield_to_others

_FORK_SERVER = multiprocessing.get_context("forkserver")
_ROOT = str(Path(__file__).resolve().parents[2])
_starting = threading.Lock()
_SPARE = 16  # descriptors that starting a process takes for a moment
_SOCKET_PATH = 104 - len("/pymp-12345678/listener-12345678") - 1  # macOS takes 104, Linux 108
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def warm_up(*modules: str) -> None:
    """Start the fork server now, so that it imports torch while this process does other things.

    It imports the modules that define stages: those known here by now, and `modules`.
    """
    with _starting, _without_main():
        # The fork server searches where this process does, wherever it was started.
        paths = [_ROOT, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in paths if path))
        _FORK_SERVER.set_forkserver_preload(["tasks.caching.served", *bodies.MODULES, *modules])
        from multiprocessing.forkserver import ensure_running

        machine.raise_limit()  # for all that starts from here, too
        try:
            with short_temporary_folder(), _fixed_hashes():
                ensure_running()
        except OSError as error:
            raise _cannot_start(error) from error


def _cannot_start(error: Exception) -> CommonError:
    why = (isinstance(error, OSError) and error.strerror) or str(error) or "it ended at once"
    return CommonError(
        f"no process can be started ({why}): allow more open files and processes (`ulimit -n 4096`,"
        " `ulimit -u`), or free some memory"
    )


class Processes:
    """The bodies of one flow run, each in a process of its own; they end together."""

    def __init__(self, is_over: Callable[[], bool] | None = None) -> None:
        """`is_over` says, asked every other second, whether the run has ended elsewhere."""
        self._running: set[BaseProcess] = set()
        self._stopped = False
        self._is_over = is_over

    def run(self, body: Body, progress: Callable[..., None]) -> Any:
        """Run a body in a process of its own; a StageError carries that one's traceback.

        When no process can be started, raises CommonError and lets none start after it.
        """
        self.prepare()
        with contextlib.ExitStack() as held:
            cores = held.enter_context(CORES.hold(body.cores, body.seconds, self.is_stopped))
            arguments = (_ROOT, body, cores, dict(os.environ))
            process, receiver = held.enter_context(self.started(_child, arguments))
            return self.heard(receiver, process, body, progress)

    @contextlib.contextmanager
    def together(self) -> Iterator[Runner]:
        """A runner for many short bodies, one after another: each in a fork of one process.

        Which has read their sources, and starts one in some milliseconds.
        """
        runner = _Together(self)
        try:
            yield runner
        finally:
            runner.end()

    def prepare(self) -> None:
        """Let processes be started, which may take a while: before a body holds cores."""
        if multiprocessing.current_process().daemon:
            # Those of somebody else's pool may not have children; ours end with them.
            multiprocessing.current_process().daemon = False
        warm_up()

    @contextlib.contextmanager
    def started(
        self, target: Callable[..., None], arguments: tuple[Any, ...]
    ) -> Iterator[tuple[BaseProcess, Connection]]:
        """A process inside, and where it answers."""
        process, receiver = self._start(target, arguments)
        try:
            with receiver:
                yield process, receiver
        finally:
            process.kill()
            process.join()
            self._running.discard(process)
            process.close()  # an error that is kept would keep its descriptors

    def heard(
        self,
        receiver: Connection,
        process: BaseProcess,
        body: Body,
        progress: Callable[..., None],
    ) -> Any:
        """What a body gives that has begun.  Raises what it did, and LadderError if it is late."""
        end = time.monotonic() + (body.timeout or math.inf)
        try:
            return _listen(receiver, process, progress, lambda: self._wait(receiver, end))
        except TimeoutError:
            raise LadderError(
                f"it took longer than {spelled(body.timeout)}: give stages more time "
                "(stage_timeout), or it less to do; the next run goes on from what it saved"
            ) from None
        except StageError:
            if self._stopped:
                raise StoppedError("its run was stopped") from None
            raise

    def _wait(self, receiver: Connection, end: float) -> None:
        """Wait for a message.

        Raises StoppedError when the run has ended elsewhere, and TimeoutError at the end.
        """
        while not receiver.poll(min(2, max(0, end - time.monotonic()))):
            if time.monotonic() >= end:
                raise TimeoutError
            if self._is_over and self._is_over():
                self._stopped = True
                raise StoppedError("its run has ended")

    def is_stopped(self) -> bool:
        """Whether the run ends, and no body is to begin any more."""
        return self._stopped

    def stop(self) -> None:
        """End every body at once, and let none start that still waits for a core."""
        self._stopped = True
        for process in list(self._running):
            with contextlib.suppress(ValueError):  # it has ended just now
                process.kill()

    def _start(
        self, target: Callable[..., None], arguments: tuple[Any, ...]
    ) -> tuple[BaseProcess, Connection]:
        """Start a process; gives it and where it answers."""
        with _starting, _without_main():
            if self._stopped:
                raise StoppedError("its run was stopped before it began")
            with contextlib.ExitStack() as on_failure:
                try:
                    insist_on_descriptors()
                    receiver, sender = _FORK_SERVER.Pipe()
                    on_failure.enter_context(receiver)
                    with sender:
                        process = _FORK_SERVER.Process(
                            target=target, args=(sender, *arguments), daemon=True
                        )
                        process.start()
                except (OSError, EOFError) as error:
                    self.stop()
                    raise _cannot_start(error) from error
                on_failure.pop_all()
            self._running.add(process)
            return process, receiver


class _Together:
    """A runner that has one process fork for each body; after a failure it takes another."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._held = contextlib.ExitStack()
        self._one: tuple[BaseProcess, Connection] | None = None

    def run(self, body: Body, progress: Callable[..., None]) -> Any:
        """Run a body, as `Processes.run` does."""
        self._processes.prepare()
        with CORES.hold(body.cores, body.seconds, self.is_stopped) as cores:
            if self._one is None:
                self._one = self._held.enter_context(self._processes.started(_fork_each, (_ROOT,)))
            process, connection = self._one
            try:
                with contextlib.suppress(OSError):  # it is gone, as we are about to hear
                    connection.send((body, cores, dict(os.environ)))
                found = self._processes.heard(connection, process, body, progress)
                connection.recv()  # that the fork has ended, too
            except BaseException:
                self.end()
                raise
            return found

    def end(self) -> None:
        """End the process that forks, and with it what it runs."""
        self._one = None
        self._held.close()

    def stop(self) -> None:
        """End all bodies of the run."""
        self._processes.stop()

    def is_stopped(self) -> bool:
        """Whether the run ends."""
        return self._processes.is_stopped()


def _listen(
    receiver: Connection,
    process: BaseProcess,
    progress: Callable[..., None],
    wait: Callable[[], None],
) -> Any:
    while True:
        wait()
        try:
            kind, payload = receiver.recv()
        except (EOFError, OSError):  # nothing more, or half a message
            process.join()
            kind, payload = "ended", process.exitcode or 0
        if kind == "ended":
            code = payload
            cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            hint = " (often too little memory)" if code == -signal.SIGKILL else ""
            raise StageError(f"its process ended with {cause}{hint}") from None
        if kind == "progress":
            progress(*payload)
        elif kind == "mistake":
            raise LadderError(payload)
        elif kind == "common":
            raise CommonError(payload)
        elif kind == "error":
            raise StageError(payload)
        else:
            return payload


def _fork_each(connection: Connection, root: str) -> None:
    """Fork for each body that comes, and say when that has ended, and how."""
    _begin()
    is_prepared = False
    while True:
        try:
            body, cores, environment = connection.recv()
        except EOFError:
            return
        if not is_prepared and root == _ROOT:
            _adopt(environment)
            body.prepare()
            is_prepared = True
        ours, theirs = os.pipe()  # which closes when this process ends, however that comes
        child = os.fork()
        if not child:
            os.close(theirs)
            try:
                _child(connection, root, body, cores, environment, ours)
            finally:
                os._exit(0)  # whose exit functions are not this one's
        os.close(ours)
        _child_id, status = os.waitpid(child, 0)
        os.close(theirs)
        connection.send(("ended", os.waitstatus_to_exitcode(status)))


def _begin(*also: int) -> None:
    """End with the parent, and with whoever else holds the other end of a pipe."""
    threading.Thread(target=_end_with_parent, args=also, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _adopt(environment: dict[str, str]) -> None:
    """Take the environment of the run, which may be another than when the server began."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def _child(
    sender: Connection,
    root: str,
    body: Body,
    cores: int,
    environment: dict[str, str],
    *also: int,
) -> None:
    _begin(*also)
    _adopt(environment)
    gc.freeze()  # to look at what was imported would copy it into this process
    gc.enable()
    keep_freed_memory()
    yield_to_others(cores)
    if root != _ROOT:
        sender.send(("error", f"the fork server runs {_ROOT}, not {root}"))
        return
    try:

        def progress(*event: Any) -> None:
            sender.send(("progress", event))

        sender.send(("result", body.run(progress, cores)))
    except LadderError as error:
        kind = "common" if isinstance(error, CommonError) else "mistake"
        sender.send((kind, str(error)))
    except Exception:
        sender.send(("error", traceback.format_exc()))


def keep_freed_memory() -> None:
    """Let this process use again what its tensors free, instead of having it cleared by the kernel.

    A training frees and asks for the same megabytes in every step; given back in between, each of
    their pages costs a fault: a third of a step of the convnet.  For glibc; nothing elsewhere.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_THRESHOLD, 2**30)


def _end_with_parent(*also: int) -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel, *also])
        os._exit(1)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hide `__main__` while a process starts: children would import it again, and need it not.

    So a user's script needs no `if __name__ == "__main__"`, and a Prefect worker's fork does not
    import Prefect.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _fixed_hashes() -> Iterator[None]:
    """Let a Python that starts inside give texts the same hash, and sets the same order, always."""
    before = os.environ.get("PYTHONHASHSEED")
    os.environ["PYTHONHASHSEED"] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONHASHSEED"]
        else:
            os.environ["PYTHONHASHSEED"] = before


def insist_on_descriptors() -> None:
    """See that a process can be started, which halfway would leave others waiting.

    Raises OSError when too few descriptors are left.
    """
    taken: list[int] = []
    try:
        for _ in range(_SPARE):
            taken.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for each in taken:
            os.close(each)


@contextlib.contextmanager
def short_temporary_folder() -> Iterator[None]:
    """Let sockets be made in a folder whose path fits into a socket's address.

    Raises LadderError when there is no temporary folder at all.
    """
    chosen = tempfile.tempdir
    try:
        usual = tempfile.gettempdir()
        if len(os.fsencode(usual)) > _SOCKET_PATH:
            tempfile.tempdir = next(filter(_is_of_use, ("/tmp", "/var/tmp", "/dev/shm")), usual)
        yield
    except FileNotFoundError as error:
        raise LadderError("there is no temporary folder: set TMPDIR to one to write to") from error
    except OSError as error:
        if error.errno is not None and error.errno != errno.ENAMETOOLONG:
            raise
        raise LadderError(f"TMPDIR is too long ({error}): set a shorter one") from error
    finally:
        tempfile.tempdir = chosen


def _is_of_use(folder: str) -> bool:
    return Path(folder).is_dir() and os.access(folder, os.W_OK | os.X_OK)
