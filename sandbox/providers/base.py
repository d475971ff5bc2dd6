"""What the stand-in provider plugins share: check, diff and the way to and from the wire.

A provider plugin is an executable that prints the port of its gRPC server. The SDK's experimental
`Provider` does the gRPC; this module adds what it leaves out (see `Kind`), and makes a user's
error one line instead of a traceback.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, ClassVar

import grpc
import grpc.aio
from pulumi.provider.experimental import provider as rpc
from pulumi.provider.experimental.property_value import PropertyValue
from pulumi.provider.experimental.server import ProviderServicer
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc, status_pb2
from pulumi.runtime.rpc import UNKNOWN

from sandbox.providers import schema

Values = dict[str, Any]  # plain Python; UNKNOWN stands for what a preview does not know yet
Problems = Iterator[tuple[str, str]]  # (path, what is wrong with it)

AUTONAMED = "__defaults"  # the inputs that the provider chose, as Pulumi's bridged providers note


Naming = provider_pb2.CheckRequest.AutonamingOptions
NAMING: ContextVar[Naming | None] = ContextVar("naming", default=None)
"""The name that the engine proposes (`pulumi:autonaming`), which the SDK does not pass on."""


class UserError(Exception):
    """An error of the user's, told in one line."""


class UnreadyError(UserError):
    """Something is made or changed, and belongs into the state, but is not what it has to be."""

    def __init__(self, text: str, resource_id: str) -> None:
        super().__init__(text)
        self.id = resource_id
        self.properties: dict[str, PropertyValue] = {}


@dataclass(frozen=True, kw_only=True)
class Existing:
    """A resource that exists: its id, its state and, for an update, its new inputs."""

    id: str
    state: Values
    inputs: Values = field(default_factory=dict)


class Kind:
    """One resource type: what it accepts, what replaces it, and what it does.

    An input that is neither in `replaces` nor in `updates` is refused by name: the stand-in would
    ignore it, and a program that works here would do something else in production.
    """

    type: ClassVar[str]
    replaces: ClassVar[frozenset[str]] = frozenset()
    updates: ClassVar[frozenset[str]] = frozenset()
    computed: ClassVar[frozenset[str]] = frozenset()  # also inputs that are chosen if not given
    volatile: ClassVar[frozenset[str]] = frozenset()  # computed anew by an update
    secret: ClassVar[frozenset[str]] = frozenset()  # computed and secret
    sets: ClassVar[frozenset[str]] = frozenset()  # lists whose order means nothing
    documents: ClassVar[frozenset[str]] = frozenset()  # JSON text, compared as JSON
    defaults: ClassVar[Values] = {}
    autoname: ClassVar[str | None] = None

    def check(self, inputs: Values) -> Problems | None:
        """What is wrong with these inputs, beyond the schema; inputs may be UNKNOWN."""

    def derive(self, inputs: Values) -> Values | None:
        """Outputs that a plan knows already."""

    def forces(self, state: Values, inputs: Values) -> set[str] | None:
        """Inputs whose change replaces it in this case; outputs that do so by themselves."""

    def normal(self, key: str, value: Any) -> Any:
        """A value in the form in which it is compared."""
        if key in self.sets and isinstance(value, list):
            return sorted(value)
        if key in self.documents and value and value != UNKNOWN:
            return json.loads(value)
        return value

    def create(self, inputs: Values) -> tuple[str, Values]:
        """Make it; its id and its outputs."""
        raise NotImplementedError

    def read(self, it: Existing) -> Values | None:
        """What it is now (None values: unset), or None if it is gone."""
        raise NotImplementedError

    def update(self, it: Existing) -> Values:
        """Change it in place; the outputs that changed."""
        raise NotImplementedError

    def delete(self, it: Existing) -> None:
        """Remove it."""
        raise NotImplementedError


def plain(value: Any) -> Any:
    """A property value as plain Python."""
    if isinstance(value, PropertyValue):
        value = value.value
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def wire(value: Any, secret: bool = False) -> PropertyValue:
    """A plain value as a property value; every number is a float on the wire."""
    if isinstance(value, dict):
        value = {key: wire(item) for key, item in value.items()}
    elif isinstance(value, list):
        value = [wire(item) for item in value]
    elif isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    return PropertyValue(value, is_secret=secret)


def wire_all(values: Values, secret: frozenset[str] = frozenset()) -> dict[str, PropertyValue]:
    """Plain values as properties; what is None is left out."""
    return {k: wire(v, k in secret) for k, v in values.items() if v is not None}


def known(value: Any) -> bool:
    """Whether nothing in a value is UNKNOWN."""
    if isinstance(value, dict):
        return all(map(known, value.values()))
    return all(map(known, value)) if isinstance(value, list) else value != UNKNOWN


def changes(path: str, old: Any, new: Any) -> Iterator[tuple[str, str]]:
    """The paths at which two values differ, with ADD, DELETE or UPDATE."""
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from changes(f"{path}.{key}", old.get(key), new.get(key))
    elif isinstance(old, list) and isinstance(new, list):
        for index in range(max(len(old), len(new))):
            pair = (items[index] if index < len(items) else None for items in (old, new))
            yield from changes(f"{path}[{index}]", *pair)
    else:
        yield path, "ADD" if old is None else "DELETE" if new is None else "UPDATE"


class Provider(rpc.Provider):
    """A provider over a table of kinds and a table of functions."""

    package: ClassVar[str]
    settings: ClassVar[frozenset[str]] = frozenset()  # the provider's own configuration keys
    refusals: ClassVar[tuple[type[Exception], ...]] = (UserError,)  # told in one line

    def __init__(self) -> None:
        self.config: Values = {}
        self.kinds: dict[str, Kind] = {}
        # token -> the arguments it accepts, and what answers
        self.functions: dict[str, tuple[set[str], Callable[[Values], Values]]] = {}

    def kind(self, qualified: str) -> Kind:
        """The kind of a type, which comes with its parents' types before it."""
        token = qualified.rpartition("$")[2]
        if token not in self.kinds:
            raise UserError(f"the sandbox has no {token}: see sandbox/providers/{self.package}")
        return self.kinds[token]

    async def configure(self, request: rpc.ConfigureRequest) -> rpc.ConfigureResponse:
        """Keep the configuration; objects come as JSON text."""
        for key, value in request.args.items():
            given = plain(value)
            if key in ("version", "pluginDownloadURL") or given is None:
                continue
            if key not in self.settings:
                raise UserError(f"the sandbox does not model the setting {self.package}:{key}")
            structured = isinstance(given, str) and given.startswith(("{", "["))
            self.config[key] = json.loads(given) if structured else given
        return rpc.ConfigureResponse(accept_secrets=True, supports_preview=True)

    async def invoke(self, request: rpc.InvokeRequest) -> rpc.InvokeResponse:
        """Call a function, if it and its arguments are known."""
        if request.tok not in self.functions:
            raise UserError(f"the sandbox has no function {request.tok}")
        accepted, function = self.functions[request.tok]
        arguments = {k: v for k, v in plain(request.args).items() if v is not None}
        if unknown := sorted(arguments.keys() - accepted):
            raise UserError(f"{request.tok}: the sandbox does not model {', '.join(unknown)}")
        return rpc.InvokeResponse(wire_all(function(arguments)))

    async def check(self, request: rpc.CheckRequest) -> rpc.CheckResponse:
        """Fill in defaults and names, then refuse what the real provider would refuse."""
        kind = self.kind(request.type)
        inputs = {k: v for k, v in request.new_inputs.items() if v.value is not None}
        chosen = dict(kind.defaults)
        if kind.autoname:
            seed = (request.random_seed or request.urn.encode()).hex()
            naming = NAMING.get() or Naming()
            chosen[kind.autoname] = naming.proposed_name or f"{request.name}-{seed[:7]}"
            if naming.mode == Naming.DISABLE:
                raise UserError("the sandbox does not model pulumi:autonaming mode: disabled")
            if kind.autoname in (plain(request.old_inputs.get(AUTONAMED)) or ()):
                chosen[kind.autoname] = plain(request.old_inputs[kind.autoname])
        chosen = {key: value for key, value in chosen.items() if key not in inputs}
        values = plain(inputs)
        found = list(schema.problems(kind.type, values))
        if not found:
            modelled = kind.replaces | kind.updates
            found = [
                (key, "is not modelled by the sandbox") for key in values if key not in modelled
            ]
        if not found:
            found = list(kind.check({**chosen, **values}) or ())
        return rpc.CheckResponse(
            inputs={**inputs, **wire_all({**chosen, AUTONAMED: sorted(chosen)})},
            failures=[rpc.CheckFailure(path, problem) for path, problem in found],
        )

    async def diff(self, request: rpc.DiffRequest) -> rpc.DiffResponse:
        """Compare the state with the new inputs, key by key."""
        kind = self.kind(request.type)
        state, inputs = plain(request.old_state), plain(request.new_inputs)
        derived = kind.derive(inputs) or {}
        forced = kind.replaces | (kind.forces(state, inputs) or set())
        detailed: dict[str, rpc.PropertyDiff] = {}
        touched: set[str] = set()
        for key in sorted(kind.replaces | kind.updates | derived.keys()):
            new = inputs.get(key, derived.get(key))
            # what is not said is chosen by AWS or empty: neither is a change
            unsaid = new is None and (key in kind.computed or not state.get(key))
            if unsaid or key in request.ignore_changes:
                continue
            raw = state.get(key), new
            pair = tuple(kind.normal(key, value) for value in raw)
            if pair[0] == pair[1]:
                continue
            # told in the words of the input, so that the engine finds the values
            for path, what in changes(key, *(pair if key in kind.sets else raw)):
                suffix = "_REPLACE" if key in forced else ""
                change = rpc.PropertyDiffKind[what + suffix]
                detailed[path] = rpc.PropertyDiff(change, key in inputs)
                touched.add(key)
        for key in forced - kind.replaces - kind.updates:  # for a reason that no input shows
            detailed[key] = rpc.PropertyDiff(rpc.PropertyDiffKind.UPDATE_REPLACE, False)
            touched.add(key)
        name = kind.autoname
        pinned = name in inputs and name not in inputs.get(AUTONAMED, ()) and name not in touched
        return rpc.DiffResponse(
            changes=bool(touched),
            replaces=sorted(touched & forced),
            diffs=sorted(touched),
            detailed_diff=detailed,
            delete_before_replace=pinned and bool(touched & forced),
        )

    async def create(self, request: rpc.CreateRequest) -> rpc.CreateResponse:
        """Create; in a preview say what will be computed."""
        kind, given = self.kind(request.type), _without_notes(request.properties)
        inputs = plain(given)
        outputs = kind.derive(inputs) or {}
        resource_id = ""
        if request.preview:
            outputs |= {key: UNKNOWN for key in kind.computed if key not in inputs}
        else:
            try:
                resource_id, made = kind.create(inputs)
            except UnreadyError as error:
                outputs |= kind.read(Existing(id=error.id, state=inputs)) or {}
                error.properties = {**wire_all(outputs, kind.secret), **given}
                raise
            outputs |= made
        return rpc.CreateResponse(resource_id, {**wire_all(outputs, kind.secret), **given})

    async def read(self, request: rpc.ReadRequest) -> rpc.ReadResponse:
        """What is there now; without a state it is an import."""
        kind, state = self.kind(request.type), plain(request.properties)
        seen = kind.read(Existing(id=request.resource_id, state=state))
        if seen is None:
            return rpc.ReadResponse("")
        properties, inputs = dict(request.properties), dict(request.inputs)
        for key, value in seen.items():
            wanted = key in inputs or (
                key in kind.replaces | kind.updates and key not in kind.computed
            )
            for values, accepted in ((properties, True), (inputs, wanted)):
                old = values.get(key)
                if not accepted or kind.normal(key, plain(old)) == kind.normal(key, value):
                    continue
                if value is None:
                    values.pop(key)
                else:
                    values[key] = wire(value, key in kind.secret or bool(old and old.is_secret))
        return rpc.ReadResponse(request.resource_id, properties, inputs)

    async def update(self, request: rpc.UpdateRequest) -> rpc.UpdateResponse:
        """Update in place; what the program no longer says leaves the state."""
        kind, given = self.kind(request.type), _without_notes(request.news)
        inputs, state = plain(given), plain(request.olds)
        outputs = kind.derive(inputs) or {}
        kept = {k: v for k, v in request.olds.items() if k not in kind.replaces | kind.updates}
        kept |= {k: v for k, v in request.olds.items() if k in kind.computed}
        if request.preview:
            outputs |= dict.fromkeys(kind.volatile, UNKNOWN)
        else:
            try:
                outputs |= kind.update(Existing(id=request.resource_id, state=state, inputs=inputs))
            except UnreadyError as error:
                error.properties = {**kept, **given}
                raise
        return rpc.UpdateResponse({**kept, **wire_all(outputs, kind.secret), **given})

    async def delete(self, request: rpc.DeleteRequest) -> None:
        """Delete."""
        it = Existing(id=request.resource_id, state=plain(request.properties))
        self.kind(request.type).delete(it)


def _without_notes(properties: Mapping[str, PropertyValue]) -> dict[str, PropertyValue]:
    return {key: value for key, value in properties.items() if key != AUTONAMED}


Method = Callable[[Any, Any, grpc.aio.ServicerContext], Awaitable[Any]]


def _one_line(method: Method) -> Method:
    async def answer(self: Any, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await method(self, request, context)
        except Exception as error:
            # the SDK raises a new error with a traceback in its text; the cause is its context
            if not isinstance(error.__context__, self._provider.refusals):
                raise
            cause = error.__context__
            line = " ".join(str(cause).split())
        if not isinstance(cause, UnreadyError):
            return await context.abort(grpc.StatusCode.INVALID_ARGUMENT, line)
        # as the SDK tells of wrong inputs; for this it has nothing
        failed = provider_pb2.ErrorResourceInitFailed(
            id=cause.id, properties=PropertyValue.marshal_map(cause.properties), reasons=[line]
        )
        status = status_pb2.Status(code=grpc.StatusCode.UNKNOWN.value[0], message=line)
        status.details.add().Pack(failed)
        details = (("grpc-status-details-bin", status.SerializeToString()),)
        return await context.abort(grpc.StatusCode.UNKNOWN, line, details)

    return answer


async def _configure(self: Any, request: Any, context: grpc.aio.ServicerContext) -> Any:
    answer = await ProviderServicer.Configure(self, request, context)
    answer.supports_autonaming_configuration = True
    return answer


async def _check(self: Any, request: Any, context: grpc.aio.ServicerContext) -> Any:
    NAMING.set(request.autonaming)
    return await ProviderServicer.Check(self, request, context)


class _Servicer(ProviderServicer):
    Configure = _one_line(_configure)
    Invoke = _one_line(ProviderServicer.Invoke)
    Check = _one_line(_check)
    Diff = _one_line(ProviderServicer.Diff)
    Create = _one_line(ProviderServicer.Create)
    Read = _one_line(ProviderServicer.Read)
    Update = _one_line(ProviderServicer.Update)
    Delete = _one_line(ProviderServicer.Delete)


async def _serve(provider: Provider, release: str) -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 400 * 1024 * 1024)])
    servicer = _Servicer(sys.argv[1:], release, provider, engine_address=sys.argv[1])
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def main(provider: Provider) -> None:
    """Be the plugin: the engine reads the port from stdout and kills the process when done."""
    # the SDK's version, or the engine warns that the plugin is older than the program wants
    sdk = schema.SDKS[provider.package].replace("_", "-")
    asyncio.run(_serve(provider, version(sdk)))
