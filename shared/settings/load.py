"""Where a setting comes from: shipped (the active deployment) > environment > silkrec.yaml > default.

    SILKREC_DATABASE__URL=mysql+pymysql://…      ==   database: {url: …}   in silkrec.yaml

A misspelt name stops the start: an unknown `SILKREC_*` variable or YAML key names the nearest right one.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError

from shared.errors import ConfigurationError
from shared.settings.roots import Settings

PREFIX = "SILKREC_"
CONFIG_ENV = "SILKREC_CONFIG"
DEFAULT_FILE = "silkrec.yaml"
# Of a deployment's settings: what experiments shipped. The recommender follows it; no process reads it at its start.
SERVING = "serving"
# The declarations stand at the top level of the file, not under `data:`.
_DECLARATIONS = ("scenes", "event_types", "item_fields", "user_fields")


@dataclass(frozen=True, slots=True)
class Loaded:
    """`origin` maps a dotted name to `shipped`, `env SILKREC_…`, `file …` or (absent) the default. `ignored`: shipped
    settings that this release does not know."""

    settings: Settings
    origin: Mapping[str, str]
    config_file: Path | None
    ignored: tuple[str, ...] = ()


def load_settings(
    config: Path | None = None,
    *,
    env: Mapping[str, str] | None = None,
    shipped: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Loaded:
    """Reads and checks everything once. `overrides` (command-line options, dotted names) beat even shipped ones.

    A shipped name was checked by the release that shipped it, so one that is unknown here is a newer release's, and an
    older one beside it must be able to start. Raises ConfigurationError that names the variable or line to change.
    """
    env = os.environ if env is None else env
    path = _find_file(config, env)
    tree: dict[str, Any] = {}
    origin: dict[str, str] = {}
    if path is not None:
        for name, value in _leaves(_read_yaml(path)):
            _put(tree, origin, name, value, f"file {path.name}")
    for variable, raw in env.items():
        if variable.startswith(PREFIX) and variable != CONFIG_ENV:
            name = _setting_of(variable)
            _put(tree, origin, name, _parse(name, raw, variable), f"env {variable}")
    known = {SERVING, *_names()}
    ignored = tuple(sorted(name for name in shipped or {} if name not in known))
    for name, value in (shipped or {}).items():
        if name in known and name != SERVING:
            _put(tree, origin, name, value, "shipped")
    for name, value in (overrides or {}).items():
        _put(tree, origin, name, value, "command line")
    tree["home"] = path.parent if path is not None else Path.cwd()
    try:
        return Loaded(Settings.model_validate(tree), origin, path, ignored)
    except ValidationError as error:
        raise ConfigurationError(_explain(error, origin)) from None


def flatten(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of a settings tree; declarations stay whole."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel) and name != "data":
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _find_file(config: Path | None, env: Mapping[str, str]) -> Path | None:
    named = config or (Path(env[CONFIG_ENV]) if env.get(CONFIG_ENV) else None)
    if named is not None:
        if not named.is_file():
            raise ConfigurationError(
                f"there is no configuration file {named}; give --config or {CONFIG_ENV} an existing file"
            )
        return named.resolve()
    here = Path(DEFAULT_FILE)
    return here.resolve() if here.is_file() else None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path}: the top level must be a mapping of settings")
    tree = {str(key): value for key, value in content.items() if key not in _DECLARATIONS}
    if declared := {key: value for key, value in content.items() if key in _DECLARATIONS}:
        tree["data"] = declared
    return tree


def _leaves(tree: Mapping[str, Any], model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        field = model.model_fields.get(key)
        if field is None:
            near = difflib.get_close_matches(key, [*model.model_fields, *_DECLARATIONS], 1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise ConfigurationError(f"unknown setting {prefix}{key} in the configuration file{hint}")
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and key != "data" and isinstance(value, dict):
            yield from _leaves(value, inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _names(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    for key, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and key != "data":
            yield from _names(inner, f"{prefix}{key}.")
        elif key not in ("home", "data"):
            yield f"{prefix}{key}"


def _setting_of(variable: str) -> str:
    name = variable.removeprefix(PREFIX).lower().replace("__", ".")
    known = list(_names())
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, 1, cutoff=0.4)
    right = PREFIX + near[0].upper().replace(".", "__") if near else "one of `silkrec config show`"
    raise ConfigurationError(f"unknown environment variable {variable}; did you mean {right}?")


def _parse(name: str, raw: str, variable: str) -> Any:
    """Lists are YAML flow lists or comma separated; everything else is left to the field's own validation."""
    model: type[BaseModel] = Settings
    *groups, leaf = name.split(".")
    for group in groups:
        inner = model.model_fields[group].annotation
        model = cast("type[BaseModel]", inner)
    if get_args(model.model_fields[leaf].annotation)[-1:] != (Ellipsis,):
        return raw
    if not raw.lstrip().startswith("["):
        return [part.strip() for part in raw.split(",") if part.strip()]
    try:
        return yaml.safe_load(raw)
    except yaml.YAMLError:
        raise ConfigurationError(f"{variable} is no list: write a,b,c or [a, b, c]") from None


def _put(tree: dict[str, Any], origin: dict[str, str], name: str, value: Any, source: str) -> None:
    *groups, leaf = name.split(".")
    node = tree
    for group in groups:
        node = node.setdefault(group, {})
    node[leaf] = value
    origin[name] = source


def _explain(error: ValidationError, origin: Mapping[str, str]) -> str:
    lines = []
    for fault in error.errors():
        place = ".".join(str(part) for part in fault["loc"]).removeprefix("data.")
        source = next((s for n, s in origin.items() if place == n or place.startswith(f"{n}.")), None)
        lines.append(f"{place or 'settings'}{f' ({source})' if source else ''}: {fault['msg']}")
    return "; ".join(lines)
