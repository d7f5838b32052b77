"""Options from dataclasses: each field of a request that carries an ``Option`` becomes an option of the verb."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Optional, Union, get_args, get_origin, get_type_hints

import typer

from adafocus_edge.cli.process import set_debug
from adafocus_edge.system.options import GENERAL, OUTPUT, Option, option_of

DEFAULT_MODEL_NOTE = (
    "the default model: `fight` or `no_fight` in surveillance video (its MODEL_CARD.md says what it is not for)"
)

Json = Annotated[bool, Option("Print JSON instead of tables.", OUTPUT, ("--json",))]
Quiet = Annotated[bool, Option("Print only errors on stderr.", GENERAL, ("--quiet", "-q"))]
Debug = Annotated[
    bool,
    typer.Option("--debug", help="Show the traceback of an error.", callback=set_debug, rich_help_panel=GENERAL),
]


def with_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options of its parameters' dataclasses, and those of its own that are declared by ``Option``.

    A parameter whose type is a dataclass becomes one option per field that is annotated with ``Option``; the verb gets
    the dataclass, made of their values. Type, default and help of an option stand in the dataclass only.
    """

    @functools.wraps(verb)
    def run(**given: Any) -> None:
        made = {name: kind(**{one: given.pop(one) for one in fields}) for name, (kind, fields) in requests.items()}
        verb(**given, **made)

    hints = get_type_hints(verb, include_extras=True)
    requests: dict[str, tuple[Callable[..., Any], list[str]]] = {}
    parameters: list[inspect.Parameter] = []
    for own in inspect.signature(verb).parameters.values():
        hint = _declared(hints[own.name])
        if dataclasses.is_dataclass(hint):
            fields = list(_fields(hint))
            requests[own.name] = (hint, [field.name for field in fields])  # type: ignore[assignment]
            parameters += fields
        else:
            parameters.append(_parameter(own.name, hint, own.default))
    del run.__wrapped__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _declared(hint: Any) -> Any:
    """Return a hint as it was declared: Python 3.10 wraps that of a parameter whose default is None in ``Optional``."""
    annotated = [one for one in get_args(hint) if hasattr(one, "__metadata__")] if _is_optional(hint) else []
    return annotated[0] if annotated else hint


def _fields(request: Any) -> Iterator[inspect.Parameter]:
    """Yield the fields of a dataclass that carry an ``Option`` as parameters."""
    hints = get_type_hints(request, include_extras=True)
    for field in dataclasses.fields(request):
        if option_of(hints[field.name]) is not None:
            yield _parameter(field.name, hints[field.name], field.default)


def _parameter(name: str, hint: Any, default: Any) -> inspect.Parameter:
    """Return a parameter as Typer takes it; one without an ``Option`` stays as it is."""
    option = option_of(hint)
    if option is not None:
        kind = hint.__origin__
        if option.read is not None:
            kind = Optional[option.accepts] if _is_optional(kind) else option.accepts  # noqa: UP045 - made at run time
            default = ",".join(map(str, default)) if isinstance(default, tuple) else default
        hint = Annotated[kind, _typer_option(name, option)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _is_optional(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType) and type(None) in get_args(kind)


def _typer_option(name: str, option: Option) -> Any:
    names = option.names or ("--" + name.replace("_", "-"),)
    read = option.read

    def convert(value: Any) -> Any:
        return None if read is None or value is None else read(names[0], value)

    return typer.Option(
        *names,
        help=option.help,
        rich_help_panel=option.panel,
        min=option.minimum,
        max=option.maximum,
        metavar=option.metavar or None,
        show_default=option.default or True,
        envvar=option.variable or None,
        callback=None if read is None else convert,
    )
