"""A language host for `pulumi import`, which asks it what the program needs and runs nothing.

Pulumi's own for Python is in no package index; the sandbox runs the program in its own process.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from pulumi.runtime.proto import language_pb2, language_pb2_grpc, plugin_pb2


class Host(language_pb2_grpc.LanguageRuntimeServicer):
    def GetPluginInfo(self, *_: Any) -> Any:  # noqa: N802
        return plugin_pb2.PluginInfo(version="0.0.0")

    def GetRequiredPackages(self, *_: Any) -> Any:  # noqa: N802
        return language_pb2.GetRequiredPackagesResponse()


if __name__ == "__main__":
    server = grpc.server(ThreadPoolExecutor())
    language_pb2_grpc.add_LanguageRuntimeServicer_to_server(Host(), server)
    print(server.add_insecure_port("127.0.0.1:0"))
    sys.stdout.flush()
    server.start()
    server.wait_for_termination()
