"""What pulumi prints, searched for what its stacks keep secret."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sandbox.engine import Engine
from tests.leaks import holds


@contextmanager
def searched() -> Iterator[None]:
    """Meanwhile, a preview, up or destroy of any `Engine` fails if anything that it prints, or that
    it is refused with, holds a secret that was set in some engine, in some spelling, or a key."""
    run, put = Engine._run, Engine.set_secret
    secrets: set[str] = set()

    def set_secret(self: Engine, key: str, value: str) -> None:
        secrets.add(value)
        put(self, key, value)

    def run_searched(
        self: Engine, operation: Callable[..., Any], output: Any, **options: Any
    ) -> Any:
        said: list[str] = []

        def collect(line: str) -> None:
            said.append(line)
            if output is not None:
                output(line)

        try:
            return run(self, operation, collect, on_error=said.append, **options)
        except Exception as error:
            said.append(str(error))
            raise
        finally:
            text = "\n".join(said).encode()
            found = [number for number, secret in enumerate(secrets) if holds(text, secret)]
            assert not found, "pulumi has printed a secret"
            assert b"PRIVATE KEY" not in text, "pulumi has printed a private key"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "set_secret", set_secret)
        patch.setattr(Engine, "_run", run_searched)
        yield
