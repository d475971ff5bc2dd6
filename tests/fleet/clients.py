"""Clients of the proxy beside Prometheus: half of them keep their connection, half never do.

`clients.py HOST PORT CA KIND_OF_EACH` asks once a second and client until its standard input ends,
then prints what was answered, as JSON: kind → outcome → how often. The program stands alone: it
runs where Prometheus is, with VPC DNS.
"""

from __future__ import annotations

import http.client
import json
import ssl
import sys
import threading
from collections import Counter

host, port, ca, each = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
context = ssl.create_default_context(cafile=ca)
counts: dict[str, Counter[str]] = {"keepalive": Counter(), "fresh": Counter()}
stop = threading.Event()


def ask(connection: http.client.HTTPSConnection) -> str:
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    answer.read()
    return str(answer.status)


def client(kind: str) -> None:
    connection = http.client.HTTPSConnection(host, port, context=context, timeout=5)
    while not stop.wait(1):
        kept = connection.sock is not None
        try:
            try:
                outcome = ask(connection)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                if not kept:
                    raise
                # ended while nobody asked: Prometheus' client asks once more, too
                connection.close()
                outcome = ask(connection)
        except (OSError, http.client.HTTPException) as error:
            outcome = type(error).__name__
            connection.close()
        counts[kind][outcome] += 1
        if kind == "fresh":
            connection.close()


threads = [threading.Thread(target=client, args=[kind]) for kind in counts for _ in range(each)]
for thread in threads:
    thread.start()
sys.stdin.read()
stop.set()
for thread in threads:
    thread.join()
print(json.dumps(counts))
