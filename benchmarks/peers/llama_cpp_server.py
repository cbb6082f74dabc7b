"""llama-cpp-python's own server, not repacked."""

from llama_cpp.server.__main__ import main

import benchmarks.peers.not_repacked  # noqa: F401 - before the server makes its model

main()  # type: ignore[no-untyped-call]
