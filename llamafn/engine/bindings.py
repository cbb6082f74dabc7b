"""The only importer of `llama_cpp`, and the few native things that its bindings leave out.

`import llama_cpp` runs an `__init__` that pulls in numpy, diskcache and 18,000 lines (0.12 s, 41 MB). All that is
needed is the ctypes module `llama_cpp.llama_cpp` (0.02 s), so a package with the same `__path__` is put in its place
first. Importing this module loads the shared libraries: do it off the critical path. Everything it calls releases
the GIL.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import importlib.machinery
import os
import sys
import types
import typing
from typing import Any

from llamafn import heap


def _import_llama_cpp() -> Any:
    """`llama_cpp.llama_cpp`, without the package's `__init__` where that works."""
    if "llama_cpp" not in sys.modules:
        spec = importlib.machinery.PathFinder.find_spec("llama_cpp")
        if spec is not None and spec.submodule_search_locations:
            package = types.ModuleType("llama_cpp")
            package.__path__ = list(spec.submodule_search_locations)
            package.__spec__ = spec
            sys.modules["llama_cpp"] = package
            # All it wants of typing_extensions is TypeAlias, which typing has had since 3.10; the import takes 8 ms.
            stands_in = "typing_extensions" not in sys.modules
            if stands_in:
                sys.modules["typing_extensions"] = typing
            try:
                return importlib.import_module("llama_cpp.llama_cpp")
            except (ImportError, AttributeError):
                # A release that moved things: the front door still opens.
                for name in [name for name in sys.modules if name.partition(".")[0] == "llama_cpp"]:
                    del sys.modules[name]
            finally:
                if stands_in:
                    del sys.modules["typing_extensions"]
    return importlib.import_module("llama_cpp.llama_cpp")


llama: Any = _import_llama_cpp()
_libc = ctypes.CDLL(None)

# A callback that llama.cpp calls must not be Python on a hot path: it would wait for the GIL, which another thread may
# hold for milliseconds, thousands of times a load (log) or a token (abort). Two libc functions do the work instead.
# Both take their arguments in registers and ignore what they do not know, on every ABI that Linux has.
#
# `abs(level)` is a log callback that does nothing.
_SILENT_LOG = ctypes.cast(_libc.abs, llama.llama_log_callback)
# `strlen(flag)` is an abort callback: 0 (false) while the first byte is NUL, 1 (true) once it is not.
_IS_FLAG_SET = ctypes.cast(_libc.strlen, llama.ggml_abort_callback)


class AbortFlag:
    """One byte that stops llama.cpp at the next graph node while it is set. Any thread may set it."""

    __slots__ = ("_byte",)

    def __init__(self) -> None:
        self._byte = ctypes.create_string_buffer(2)  # NUL-terminated whether it is set or not

    def set(self) -> None:
        self._byte[0] = b"\x01"

    def clear(self) -> None:
        self._byte[0] = b"\x00"

    def is_set(self) -> bool:
        return self._byte[0] != b"\x00"

    def arm(self, context_parameters: Any) -> None:
        """Make a context that is about to be created obey this flag, which must outlive it."""
        context_parameters.abort_callback = _IS_FLAG_SET
        context_parameters.abort_callback_data = ctypes.cast(self._byte, ctypes.c_void_p)


class _ThreadPoolParameters(ctypes.Structure):
    """`struct ggml_threadpool_params` of ggml.h; GGML_MAX_N_THREADS is 512."""

    _fields_ = (
        ("cpumask", ctypes.c_bool * 512),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


class ThreadPool:
    """ggml's threads, kept between graphs. Without one, ggml starts and joins new threads for every token (8 % slower).

    Must be made after the last fork: threads do not survive one.
    """

    __slots__ = ("_cpu", "_pool")

    def __init__(self, n_threads: int) -> None:
        self._pool: int | None = None
        base, self._cpu = _native("ggml-base"), _cpu_backend()
        if base is None or self._cpu is None:
            return  # an engine built in a way we do not know: slower, and right all the same
        parameters = _ThreadPoolParameters()
        base.ggml_threadpool_params_init(ctypes.byref(parameters), n_threads)
        self._cpu.ggml_threadpool_new.restype = ctypes.c_void_p
        self._pool = self._cpu.ggml_threadpool_new(ctypes.byref(parameters))

    def attach(self, context: Any) -> None:
        if self._pool is not None:
            attach = llama._lib.llama_attach_threadpool
            attach.argtypes = [ctypes.c_void_p] * 3
            attach.restype = None
            attach(context, self._pool, self._pool)

    def close(self) -> None:
        """Join the threads. The context they were attached to must be gone."""
        if self._pool is not None:
            self._cpu.ggml_threadpool_free(ctypes.c_void_p(self._pool))
            self._pool = None


def directory() -> str:
    """Where the shared libraries are."""
    return os.path.dirname(os.path.realpath(str(llama._lib._name)))


def version() -> str:
    """llama.cpp's version, as it reports it."""
    return f"{llama.llama_version().decode()}"


def release() -> str:
    """What tells releases apart: llama.cpp's version, which may stay the same, and the bindings' source."""
    try:
        with open(llama.__file__, "rb") as file:
            return f"{version()} {hashlib.sha256(file.read()).hexdigest()[:16]}"
    except OSError:
        return version()


def silence_log() -> None:
    llama.llama_log_set(_SILENT_LOG, None)


class CapturedLog:
    """`with CapturedLog() as log:` keeps what llama.cpp says of errors, to find out why a call failed."""

    ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR

    def __init__(self) -> None:
        self.errors: list[str] = []
        # Kept as an attribute: a callback that was collected is a segmentation fault.
        self._callback = llama.llama_log_callback(self._collect)

    def _collect(self, level: int, text: bytes, _user_data: Any) -> None:
        if level == self.ERROR_LEVEL:
            self.errors.append(text.decode(errors="replace").strip())

    def __enter__(self) -> CapturedLog:
        llama.llama_log_set(self._callback, None)
        return self

    def __exit__(self, *_: object) -> None:
        silence_log()


def _native(name: str) -> Any:
    """One of the engine's own libraries that is loaded already; None if it is not there."""
    for suffix in (".so.0", ".so"):
        with contextlib.suppress(OSError):
            # RTLD_NOLOAD: a second copy of a ggml library in one process crashes it.
            return ctypes.CDLL(os.path.join(directory(), f"lib{name}{suffix}"), os.RTLD_NOW | os.RTLD_NOLOAD)
    return None


def _cpu_backend() -> Any:
    """The CPU backend: linked (`libggml-cpu`), or the variant that was picked for this CPU at run time."""
    linked = _native("ggml-cpu")
    if linked is not None:
        return linked
    for file in sorted(os.listdir(directory())):
        if file.startswith("libggml-cpu-") and file.endswith(".so"):
            variant = _native(file[len("lib") : -len(".so")])
            if variant is not None:
                return variant
    return None


def _start() -> None:
    silence_log()
    heap.share()
    if _native("ggml-cpu") is None:
        # A portable engine: one CPU backend per CPU family lies beside the libraries; the best is loaded now.
        ggml = _native("ggml")
        if ggml is not None:
            ggml.ggml_backend_load_all_from_path(os.fsencode(directory()))
    llama.llama_backend_init()


_start()
