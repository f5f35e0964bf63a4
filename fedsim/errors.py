"""What can go wrong, one class per place.

    FedSimError
      ScenarioError   the scenario file or an override is wrong       exit code 2
      DataError       data are missing, unreadable or cannot be split  exit code 2
      EngineError     workers, Ray or a device cannot be had           exit code 2
      AppError        somebody else's Flower app cannot be loaded      exit code 2
        AppRunError   its ServerApp raised, or no client answered      exit code 1
      ClientError     one client failed; it is named                   exit code 1
      RoundError      a round cannot be finished                       exit code 1

A message reads "where: what is wrong, got X; do Y".
"""

from __future__ import annotations

from collections.abc import Sequence


class FedSimError(Exception):
    """Base of every error the platform raises on purpose."""

    exit_code = 1


class ScenarioError(FedSimError):
    """The scenario is wrong; every problem found is listed.

    Args:
        where: The file or command the problems were found in.
        problems: One line each, "key: what is wrong".
    """

    exit_code = 2

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.where = where
        self.problems = tuple(problems)
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}"
        super().__init__("\n".join([f"{where}: {count}", *(f"  {line}" for line in self.problems)]))

    def __reduce__(self) -> tuple[type[ScenarioError], tuple[str, tuple[str, ...]]]:
        return type(self), (self.where, self.problems)


class DataError(FedSimError):
    """Data are missing, unreadable, or cannot be divided as asked."""

    exit_code = 2


class EngineError(FedSimError):
    """Workers, Ray or a device cannot be had."""

    exit_code = 2


class AppError(FedSimError):
    """A Flower app cannot be loaded; says where, and holds the app's own traceback where its code is at fault."""

    exit_code = 2


class AppRunError(AppError):
    """A Flower app was loaded and its run failed."""

    exit_code = 1


class ClientError(FedSimError):
    """One client failed in one round.

    Args:
        client: Client number, from 0.
        server_round: Round number, from 1 (0 is the evaluation of the initial model).
        cause: What happened, in words.
        node: Flower's node id, for a node that never said which client it is (client is -1 then).
    """

    def __init__(self, client: int, server_round: int, cause: str, node: int | None = None) -> None:
        self.client = client
        self.node = node
        self.server_round = server_round
        self.cause = cause
        who = f"client {client}" if client >= 0 else f"node {node}"
        super().__init__(f"{who}, round {server_round}: {cause}")

    def __reduce__(self) -> tuple[type[ClientError], tuple[int, int, str, int | None]]:
        return type(self), (self.client, self.server_round, self.cause, self.node)


class RoundError(FedSimError):
    """A round cannot be finished."""
