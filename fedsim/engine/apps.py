"""Somebody else's Flower app: read, loaded and answered for, client by client, as Flower's own simulation would.

The app is any folder with a pyproject.toml that names a ServerApp and a ClientApp. Nothing in it has to know of us.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from flwr.app import Context, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsim.engine import flower
from fedsim.engine.flower import Fault
from fedsim.engine.records import Records, opened, own_copy, pack_state, unpack_state, with_said
from fedsim.engine.states import State
from fedsim.engine.task import Desk
from fedsim.errors import AppError

OURS = ("clients", "strategies")
"""Packages of ours that no code runs from while somebody else's app does: the app may have its own of that name."""

PAIR = re.compile(r"(\S+?)=(\'[^\']*\'|\"[^\"]*\"|\S+)")
"""What Flower takes for key=value; it leaves out silently what does not look like it."""


@dataclass(frozen=True)
class FlowerApp:
    """A Flower app on disk.

    Attributes:
        folder: Where its pyproject.toml is, absolute.
        name: publisher/name, as Flower calls it.
        version: Of its pyproject.toml.
        server: "module:attribute" of the ServerApp.
        client: "module:attribute" of the ClientApp.
        overrides: What was changed of its configuration.
        run_config: Its configuration, flat, with the changes.
    """

    folder: Path
    name: str
    version: str
    server: str
    client: str
    overrides: UserConfig
    run_config: UserConfig

    def load_server(self) -> ServerApp:
        """Import the ServerApp.

        Raises:
            AppError: It cannot be imported, or is none; holds the app's traceback.
        """
        found = _load(self.folder, "serverapp", self.server)
        if not isinstance(found, ServerApp):
            place = _place(self.folder, "serverapp")
            raise AppError(f"{place}: {self.server} is no ServerApp, got {_kind(found)}")
        return found

    def load_client(self) -> ClientApp:
        """Import the ClientApp.

        Raises:
            AppError: It cannot be imported, or is none; holds the app's traceback.
        """
        found = _load(self.folder, "clientapp", self.client)
        if not isinstance(found, ClientApp):
            place = _place(self.folder, "clientapp")
            raise AppError(f"{place}: {self.client} is no ClientApp, got {_kind(found)}")
        return found


def find_app(folder: str | Path, changes: Sequence[str] = ()) -> FlowerApp:
    """Read the pyproject.toml of a Flower app.

    Args:
        folder: Where it is.
        changes: Strings of "key=value" pairs, or one path of a TOML file, as for `flwr run --run-config`.

    Raises:
        AppError: There is no app, a component is missing, or a change is of a key that the app does not declare.
    """
    if str(folder).startswith("@"):
        raise AppError(f"{folder}: apps of Flower Hub are not fetched; give a folder on this machine")
    here = Path(folder).expanduser().absolute()
    file = here / "pyproject.toml"
    try:
        project = flower.project_of(here)
    except FileNotFoundError:
        raise AppError(f"{file}: no such file; give the folder of a Flower app") from None
    except ValueError as error:  # TOML that cannot be read is one too
        raise AppError(f"{file}: {_one_line(error)}") from error
    own = here / "fedsim"
    if own.is_dir() and own != Path(__file__).resolve().parents[1]:
        raise AppError(f"{own}: an app with a package of this name cannot run on fedsim; rename it")
    app = project["tool"]["flwr"]["app"]
    components = app["components"]
    for name in ("serverapp", "clientapp"):
        if not re.fullmatch(r"[^:]+:[^:]+", str(components.get(name, ""))):
            raise AppError(f'{_place(here, name)}: must be "module:attribute", got {components.get(name)!r}')
    try:
        declared = flower.flat(app.get("config", {}))
    except ValueError as error:
        raise AppError(f"{file}, [tool.flwr.app.config]: {_one_line(error)}") from error
    overrides = _overrides(changes, declared)
    return FlowerApp(
        folder=here,
        name=f"{app['publisher']}/{project['project']['name']}",
        version=str(project["project"]["version"]),
        server=components["serverapp"],
        client=components["clientapp"],
        overrides=overrides,
        run_config={**declared, **overrides},
    )


class FlowerClients:
    """Answers for the nodes of a Flower app; node i + 1 is partition i.

    Each message runs the ClientApp once, as Flower's simulation does: with the node's context and the state it left
    there, records of its own, mods and lifespan around. A client that raises gives an error reply, and its state
    stays as it was. The ClientApp is imported in the process that first needs it.

    Args:
        app: Where the ClientApp is.
        num_clients: Number of nodes.
        hide_gpus: Worker processes see no GPU.
    """

    def __init__(self, app: FlowerApp, num_clients: int, *, hide_gpus: bool = False) -> None:
        self.num_clients = num_clients
        self._app = app
        self._hide_gpus = hide_gpus
        self._here = Path.cwd()
        self._home = os.getpid()
        self._loaded: ClientApp | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    def units(self, kind: str, clients: Sequence[int]) -> list[list[int]]:
        """Return every client by itself."""
        del kind
        return [[client] for client in clients]

    def cost(self, kind: str, client: int) -> float:
        """Return 1: nothing is known of how long a client takes."""
        del kind, client
        return 1.0

    def reads_state(self, kind: str) -> bool:
        """Return True: any function of an app may look at its context."""
        del kind
        return True

    def keeps_state(self, kind: str) -> bool:
        """Return True: any function of an app may change its context."""
        del kind
        return True

    def width(self, kind: str, content: RecordDict) -> int:
        """Return 0: answers are records."""
        del kind, content
        return 0

    def run(
        self,
        kind: str,
        content: RecordDict,
        units: Sequence[Sequence[int]],
        states: Sequence[State],
        desk: Desk,
    ) -> tuple[Records, list[State]]:
        """Run the ClientApp once for each client.

        Args:
            kind: Type of the messages.
            content: A request of `records.sealed`.
            units: The clients.
            states: What each one's context held after its last message.
            desk: Told whose turn it is.
        """
        clients = [client for unit in units for client in unit]
        messages = opened(kind, content, [client + 1 for client in clients])
        contents: list[RecordDict | None] = []
        errors: dict[int, str] = {}
        kept: list[State] = []
        for row, (client, message, state) in enumerate(zip(clients, messages, states, strict=True)):
            desk.turn_to(row)
            answer, left = self._answer(client, message, state)
            kept.append(left)
            contents.append(None if isinstance(answer, Fault) else answer)
            if isinstance(answer, Fault):
                errors[row] = answer
        return Records(tuple(clients), tuple(contents), errors), kept

    def _answer(self, client: int, message: Message, state: State) -> tuple[RecordDict | Fault, State]:
        """Return the content of a client's reply or what went wrong, and what the client keeps."""
        try:
            app = self._here_loaded()
        except AppError as error:
            return Fault(str(error), flower.LOAD_FAILED), state
        context = Context(
            run_id=message.metadata.run_id,
            node_id=message.metadata.dst_node_id,
            node_config={flower.PARTITION_ID_KEY: client, flower.NUM_PARTITIONS_KEY: self.num_clients},
            state=unpack_state(state),
            run_config=dict(self._app.run_config),
        )
        said = io.StringIO()
        try:
            # Nobody sees what a worker prints, so it travels with the reply.
            with contextlib.nullcontext() if os.getpid() == self._home else contextlib.redirect_stdout(said):
                reply = app(message, context)
        except (Exception, SystemExit) as error:
            return Fault(_reason(error, self._app.folder, said.getvalue())), state
        problem = _fault(reply, message)
        if problem is not None:
            return Fault(f"{self._app.client}: {problem}", flower.UNKNOWN), state
        if context.run_config != self._app.run_config:
            return Fault(flower.config_changed(context.run_id), flower.UNKNOWN), state
        try:
            left = pack_state(context.state)
        except Exception as error:
            return Fault(f"{self._app.client}: its context.state cannot be kept: {error}", flower.UNKNOWN), state
        if reply.has_error():
            return Fault(reply.error.reason or "", reply.error.code), left
        try:
            return with_said(own_copy(reply.content), said.getvalue()), left
        except Exception as error:
            return Fault(f"{self._app.client}: its reply cannot be sent: {error}", flower.UNKNOWN), state

    def _here_loaded(self) -> ClientApp:
        if self._loaded is None:
            if os.getpid() != self._home:
                if self._here.is_dir():  # elsewhere than on this machine it need not be
                    os.chdir(self._here)
                if self._hide_gpus:
                    os.environ["CUDA_VISIBLE_DEVICES"] = ""
            self._loaded = self._app.load_client()
        return self._loaded


def app_traceback(error: BaseException, folder: Path) -> str:
    """Return the traceback of an error in an app, from the app's own code on.

    Args:
        error: What was raised.
        folder: The app's folder.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        link.__traceback__ = _from_app_on(link.__traceback__, folder)
        link = link.__cause__ or link.__context__
    return "".join(traceback.format_exception(error)).rstrip()


def _from_app_on(trace: TracebackType | None, folder: Path) -> TracebackType | None:
    """Leave out the frames above the app's first; all where the app has none, as for an error of its syntax."""
    while trace is not None and folder not in Path(trace.tb_frame.f_code.co_filename).parents:
        trace = trace.tb_next
    return trace


def _reason(error: BaseException, folder: Path, said: str) -> str:
    """Return what Flower says of an exception in a ClientApp, and below it where in the app it was."""
    printed = f"it printed:\n{said.rstrip()}\n" if said else ""
    return f"{type(error)}:<'{error}'>\n{printed}{app_traceback(error, folder)}"


def _fault(reply: object, message: Message) -> str | None:
    """Return what a SuperLink would hold against a reply."""
    if not isinstance(reply, Message):
        return f"a ClientApp returns a Message, got {_kind(reply)}"
    sent, answered = message.metadata, reply.metadata
    if answered.reply_to_message_id != sent.message_id:
        return "its reply answers another message; make it with Message(content, reply_to=message)"
    if (answered.src_node_id, answered.dst_node_id) != (sent.dst_node_id, sent.src_node_id):
        return f"its reply goes from node {answered.src_node_id} to node {answered.dst_node_id}, not back"
    if reply.has_content() == reply.has_error():
        return "its reply holds neither content nor an error"
    return None


def _load(folder: Path, component: str, reference: str) -> object:
    """Return the object that "module:attribute" names, the app's folder first on the path."""
    module_name, _, attributes = reference.partition(":")
    _make_way(folder)
    place = _place(folder, component)
    try:
        found: object = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise AppError(f'{place}: there is no module "{error.name}" in {folder}') from None
        raise AppError(f"{place}: {module_name} cannot be imported\n{app_traceback(error, folder)}") from error
    for name in attributes.split("."):
        if not hasattr(found, name):
            raise AppError(f'{place}: {module_name} has no "{attributes}"')
        found = getattr(found, name)
    return found


def _make_way(folder: Path) -> None:
    """Put a folder first on the path, and forget packages of ours that it has its own of."""
    if sys.path[:1] != [str(folder)]:
        sys.path[:] = [str(folder), *(place for place in sys.path if place != str(folder))]
    importlib.invalidate_caches()
    for name in OURS:
        if not ((folder / name).is_dir() or (folder / f"{name}.py").is_file()):
            continue
        for loaded in [known for known in sys.modules if known.partition(".")[0] == name]:
            file = getattr(sys.modules[loaded], "__file__", None)
            if file is None or folder not in Path(file).parents:
                del sys.modules[loaded]


def _overrides(changes: Sequence[str], declared: Mapping[str, Any]) -> UserConfig:
    for words in changes:
        left = "" if words.endswith(".toml") else PAIR.sub("", words).strip()
        if left:
            raise AppError(f'--run-config: pairs are key=value, separated by spaces, got "{left}"')
    try:
        found = flower.overrides_of(changes)
    except OSError as error:
        raise AppError(f"--run-config: {error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise AppError(f"--run-config: {_one_line(error)} (strings need quotes: 'name=\"value\"')") from error
    unknown = [key for key in found if key not in declared]
    if unknown:
        near = difflib.get_close_matches(unknown[0], declared, 1)
        hint = f'did you mean "{near[0]}"? ' if near else ""
        known = ", ".join(declared) or "none"
        raise AppError(f'--run-config: the app declares no key "{unknown[0]}"; {hint}there are {known}')
    return found


def _place(folder: Path, component: str) -> str:
    return f"{folder / 'pyproject.toml'}, {component}"


def _kind(value: object) -> str:
    return type(value).__name__


def _one_line(error: BaseException) -> str:
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())
