"""The floor: the least Python that gets a token out of llama.cpp. No HTTP, no template, no checks.

    python bare.py MODEL PROMPT_FILE [name=value …]

The prompt is already rendered. The first token's text is the first thing on standard output; the last line says at
which moments (seconds on the monotonic clock, comparable between processes) each phase ended. Nothing is imported that
the token does not need, argparse and json included: they would be most of the imports.
"""

import time

started = time.monotonic()

import _thread  # noqa: E402
import ctypes  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import types  # noqa: E402
from importlib.machinery import PathFinder  # noqa: E402

# Every one is a llama.cpp parameter of that name, or said in `main`. Defaults are what was found best.
options: dict[str, int] = {
    "n_ctx": 2048,
    "n_threads": 2,
    "tokens": 32,
    "use_extra_bufts": 0,
    "load_mode": 1,  # mmap
    "flash_attn_type": -1,  # auto
    "n_batch": 2048,
    "n_ubatch": 512,
    "poll": -1,  # 0 to 100: a thread pool of our own that polls so hard; -1: none
    "readahead": 0,  # first of all: 1 posix_fadvise(WILLNEED); 2 readahead() in a thread; 3 read() in a thread
    "abort": 0,  # 1: arm the abort callback, with a native function that is always false
}
STEPS = ("imports", "load", "context", "prompt", "first_token", "end")


class ThreadPoolParameters(ctypes.Structure):
    """ggml_threadpool_params"""

    _fields_ = (
        ("cpumask", ctypes.c_bool * 512),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


def read_through(file: int) -> None:
    buffer = bytearray(1 << 20)
    while os.readv(file, [buffer]):
        pass


def loaded(package: str, name: str) -> ctypes.CDLL:
    """A library that is loaded already: a second copy in one process would crash it."""
    library = os.path.join(package, "lib", f"lib{name}.so")
    try:
        return ctypes.CDLL(f"{library}.0", os.RTLD_NOLOAD)
    except OSError:
        return ctypes.CDLL(library, os.RTLD_NOLOAD)


def main() -> None:
    model_path, prompt_path, *pairs = sys.argv[1:]
    for pair in pairs:
        name, _, value = pair.partition("=")
        options[name] = int(value)
    if options["readahead"]:
        file = os.open(model_path, os.O_RDONLY)
        if options["readahead"] == 1:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
        elif options["readahead"] == 2:
            size = ctypes.c_size_t(os.fstat(file).st_size)
            _thread.start_new_thread(ctypes.CDLL(None).readahead, (file, ctypes.c_int64(0), size))
        else:
            _thread.start_new_thread(read_through, (file,))

    # `import llama_cpp` would run an __init__ that imports numpy, jinja2 and 18,000 lines more.
    spec = PathFinder.find_spec("llama_cpp")
    assert spec is not None
    package = types.ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["llama_cpp"] = package
    # All that it wants of typing_extensions is TypeAlias, which typing has too, 8 ms sooner.
    sys.modules["typing_extensions"] = sys.modules["typing"] = __import__("typing")
    import llama_cpp.llama_cpp as llama

    libc = ctypes.CDLL(None)
    silence = ctypes.cast(libc.abs, llama.llama_log_callback)  # a native function that does nothing to its arguments
    llama.llama_log_set(silence, None)
    moments = [time.monotonic()]

    model_parameters = llama.llama_model_default_params()
    model_parameters.use_extra_bufts = bool(options["use_extra_bufts"])
    model_parameters.load_mode = options["load_mode"]
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(model_path.encode(), model_parameters)
    if not model:
        raise SystemExit(f"llama.cpp cannot load {model_path}")
    moments.append(time.monotonic())

    context_parameters = llama.llama_context_default_params()
    for name in ("n_ctx", "n_threads", "flash_attn_type", "n_batch", "n_ubatch"):
        setattr(context_parameters, name, options[name])
    context_parameters.n_threads_batch = options["n_threads"]
    flag = ctypes.create_string_buffer(2)
    if options["abort"]:
        context_parameters.abort_callback = ctypes.cast(libc.strlen, llama.ggml_abort_callback)
        context_parameters.abort_callback_data = ctypes.cast(flag, ctypes.c_void_p)
    context = llama.llama_init_from_model(model, context_parameters)
    if options["poll"] >= 0:
        ggml, cpu = loaded(package.__path__[0], "ggml-base"), loaded(package.__path__[0], "ggml-cpu")
        pool_parameters = ThreadPoolParameters()
        ggml.ggml_threadpool_params_init(ctypes.byref(pool_parameters), options["n_threads"])
        pool_parameters.poll = options["poll"]
        cpu.ggml_threadpool_new.restype = ctypes.c_void_p
        pool = ctypes.c_void_p(cpu.ggml_threadpool_new(ctypes.byref(pool_parameters)))
        llama._lib.llama_attach_threadpool(ctypes.c_void_p(context), pool, pool)
    moments.append(time.monotonic())

    vocabulary = llama.llama_model_get_vocab(model)
    with open(prompt_path, "rb") as prompt_file:
        prompt = prompt_file.read()
    tokens = (llama.llama_token * options["n_ctx"])()
    count = llama.llama_tokenize(vocabulary, prompt, len(prompt), tokens, len(tokens), True, True)
    moments.append(time.monotonic())

    buffer = ctypes.create_string_buffer(256)
    sampler = llama.llama_sampler_init_greedy()
    one = (llama.llama_token * 1)()
    for start in range(0, count, options["n_batch"]):
        length = min(options["n_batch"], count - start)
        part = ctypes.cast(ctypes.byref(tokens, start * ctypes.sizeof(llama.llama_token)), llama.llama_token_p)
        if llama.llama_decode(context, llama.llama_batch_get_one(part, length)):
            raise SystemExit("llama_decode failed")
    for index in range(options["tokens"]):
        if index:
            llama.llama_decode(context, llama.llama_batch_get_one(one, 1))
        one[0] = llama.llama_sampler_sample(sampler, context, -1)
        length = llama.llama_token_to_piece(vocabulary, one[0], buffer, len(buffer), 0, False)
        os.write(1, buffer.raw[:length].replace(b"\n", b" "))
        if index == 0:
            moments.append(time.monotonic())
    moments.append(time.monotonic())
    said = " ".join(f"{name}={moment:.6f}" for name, moment in zip(STEPS, moments, strict=True))
    os.write(1, f"\nstarted={started:.6f} {said} prompt_tokens={count}\n".encode())
    os._exit(0)  # freeing a model that the process's end frees anyway takes milliseconds


main()
