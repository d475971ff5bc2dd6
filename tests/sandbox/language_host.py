"""A language host for `pulumi import`, which asks it what the program needs and runs nothing.

Pulumi's own for Python is in no package index; the sandbox runs the program in its own process.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from pulumi.runtime.proto import language_pb2, language_pb2_grpc, plugin_pb2

ANSWERS = {
    "GetPluginInfo": plugin_pb2.PluginInfo(version="0.0.0"),
    "GetRequiredPackages": language_pb2.GetRequiredPackagesResponse(),
}


def main() -> None:
    host: Any = language_pb2_grpc.LanguageRuntimeServicer()
    for name, answer in ANSWERS.items():
        setattr(host, name, lambda *_, answer=answer: answer)
    server = grpc.server(ThreadPoolExecutor())
    language_pb2_grpc.add_LanguageRuntimeServicer_to_server(host, server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
