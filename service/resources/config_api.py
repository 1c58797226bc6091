"""The configuration in force, and reading it again."""

from __future__ import annotations

from typing import Any

import falcon

from engine import EngineError
from service.appliers import ApplyError
from service.config_view import change_rows, config_body
from service.configuration import (
    BusyError,
    Configuration,
    NoFileError,
    NotReadyError,
    Reloaded,
    RestartNeededError,
)
from service.context import Context
from service.errors import ProblemError, engine_status
from service.operations import operation
from service.problems import ConfigError, Problem, dotted


class Config:
    """Shows the settings in force."""

    def __init__(self, config: Configuration) -> None:
        self._config = config

    @operation("getConfig", 200)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """The settings with their origins; secrets masked."""
        resp.media = config_body(self._config.schema, self._config.file, self._config.in_force)


class Reload:
    """Reads the file again."""

    def __init__(self, config: Configuration) -> None:
        self._config = config

    @operation("reloadConfig", 200, 409, 422, 503)
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Applies what differs, or says what does."""
        dry_run = bool(getattr(req.context, "body", {}).get("dry_run", False))
        done = self._reload(dry_run)
        resp.media = {"applied": done.is_applied, "dry_run": dry_run, "changes": change_rows(done.changes)}

    def _reload(self, dry_run: bool) -> Reloaded:
        try:
            return self._config.reload("request", dry_run=dry_run)
        except NotReadyError as error:
            raise ProblemError(503, str(error)) from error
        except ConfigError as error:
            raise _invalid(error) from error
        except RestartNeededError as error:
            raise ProblemError(409, str(error), changes=change_rows(error.changes)) from error
        except ApplyError as error:
            raise ProblemError(_status(error), str(error)) from error
        except (BusyError, NoFileError) as error:
            raise ProblemError(409, str(error)) from error


def _invalid(error: ConfigError) -> ProblemError:
    errors = [_fault(each) for each in error.problems]
    return ProblemError(422, "the file is not valid, and nothing was changed; errors says where", errors=errors)


def _fault(problem: Problem) -> dict[str, str]:
    return {"place": problem.place, "setting": dotted(problem.path), "message": problem.message}


def _status(error: ApplyError) -> int:
    """503 where the engine has ended, which is no matter of what was asked for."""
    cause = error.__cause__
    return 503 if isinstance(cause, EngineError) and engine_status(cause) == 503 else 409


def routes(context: Context) -> list[tuple[str, Any]]:
    """The configuration's operations."""
    return [("/api/config", Config(context.config)), ("/api/config/reload", Reload(context.config))]
