"""The options of commands that take a recipe: its keys by their dotted names, those of [loss] also by their own."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from functools import cache
from itertools import pairwise, zip_longest
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

from udskd.config import recipes, rules, schema, toml
from udskd.config.schema import Config
from udskd.config.suggest import near
from udskd.errors import ConfigError

SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda name: name.replace("-", "_"),  # --peer-weight is --peer_weight
    "show_default": True,
}


_BOOLEAN = click.Choice((True, False), case_sensitive=False)


class RecipeCommand(click.Command):
    """A command with an option for each key of a recipe. The options that the command line gives are the object of its
    context, such as {"seed": 3, "loss.temperature": 2.0}."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *_config_options()]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, list(_explicit_booleans(args)))
        except click.NoSuchOption as error:
            # click would compare whole names, so that any two options of one section are alike
            names = _without_section(error.option_name) or near(error.option_name, _names(self, ctx))[:3]
            suggestion = f" (Did you mean {', '.join(map(repr, names))}?)" if names else ""
            raise click.UsageError(f"No such option {error.option_name!r}.{suggestion}", ctx) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section of the help for each section of a recipe."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record and isinstance(option, click.Option):
                sections.setdefault(_key(option).rpartition(".")[0], []).append(record)
        for section, records in sections.items():
            with formatter.section(f"[{section}]" if section else "Options"):
                formatter.write_dl(records)


def read_config(recipe: str | None, overrides: dict[str, Any]) -> Config:
    """The configuration of a recipe, by its file or its name, with some options replaced, or that of the defaults.

    Raises click.ClickException if there is no such recipe, or it is wrong, or a value is out of range.
    """
    try:
        config = schema.with_values(Config() if recipe is None else toml.load(recipes.find(recipe)), overrides)
        rules.check(config)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    return config


def parse(argv: Sequence[str]) -> Config:
    """The configuration that a recipe, if the command line has one, and the options beside it describe.

    Raises click.ClickException for a mistake in the command line or in the recipe.
    """
    argument = click.Argument(["recipe"], required=False)
    read = click.pass_obj(lambda overrides, recipe: read_config(recipe, overrides))
    command = RecipeCommand("train", context_settings=SETTINGS, callback=read, params=[argument])
    with command.make_context("train", list(argv)) as context:
        config: Config = command.invoke(context)
    return config


@cache
def _config_options() -> list[click.Option]:
    return list(_options(Config()))


def _options(values: Any, prefix: str = "") -> Iterator[click.Option]:
    """An option for each field of a dataclass and of the dataclasses in it."""
    texts = _docstrings()[type(values).__name__]
    for name, hint in get_type_hints(type(values)).items():
        value = getattr(values, name)
        if is_dataclass(value):
            yield from _options(value, f"{name}.")
        else:
            yield _option(prefix, name, hint, value, texts[name])


def _option(prefix: str, name: str, hint: Any, default: Any, text: str) -> click.Option:
    kind = schema.value_type(hint)
    return click.Option(
        [f"{prefix}{name}".replace(".", "__"), f"--{prefix}{name}", *[f"--{name}"] * (prefix == "loss.")],
        type=_click_type(kind) if kind is hint else _Optional(kind),
        default=default,
        help=text,
        expose_value=False,
        callback=_keep,
    )


def _names(command: click.Command, ctx: click.Context) -> list[str]:
    return [name for option in command.get_params(ctx) for name in option.opts]


def _without_section(name: str) -> list[str]:
    """The options that a name without its section may stand for: --lr for --training.lr and others."""
    names = [name for option in _config_options() for name in option.opts]
    return [known for known in names if known.rpartition(".")[2] == name.lstrip("-")]


def _explicit_booleans(args: Sequence[str]) -> Iterator[str]:
    """The arguments, with the value true after each switch that has none. click alone would take the argument that
    follows, such as the recipe, as the value."""
    switches = {name for option in _config_options() if option.type is _BOOLEAN for name in option.opts}
    for argument, following in zip_longest(args, args[1:], fillvalue=""):
        yield argument
        if argument.replace("-", "_").replace("__", "--", 1) in switches and following.lower() not in ("true", "false"):
            yield "true"


def _keep(ctx: click.Context, option: click.Parameter, value: Any) -> None:
    """Put the value among the overrides if the command line gives it."""
    overrides = ctx.ensure_object(dict)
    if ctx.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE:
        overrides[_key(option)] = value


def _key(option: click.Parameter) -> str:
    """The dotted name of the key of a recipe that an option replaces."""
    return str(option.name).replace("__", ".")


def _click_type(kind: Any) -> Any:
    if kind is bool:
        return _BOOLEAN
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    if get_origin(kind) is dict:
        return _Table()
    return tuple(map(_click_type, get_args(kind))) if get_origin(kind) is tuple else kind


class _Optional(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A type's values, or "None"."""

    def __init__(self, kind: Any) -> None:
        self.inner = click.types.convert_type(kind)
        self.name = self.inner.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return None if value == "None" else self.inner.convert(value, param, ctx)


class _Table(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """An inline table of TOML."""

    name = "table"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return toml.parse_table(param.opts[0].lstrip("-") if param else self.name, value)
        except ConfigError as error:
            raise click.ClickException(str(error)) from None


@cache
def _docstrings() -> dict[str, dict[str, str]]:
    """The docstring of each field, by the names of the dataclass and the field."""
    sources = ast.parse(inspect.getsource(schema))
    return {node.name: dict(_documented(node.body)) for node in ast.walk(sources) if isinstance(node, ast.ClassDef)}


def _documented(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            yield ast.unparse(field.target), inspect.cleandoc(ast.literal_eval(text.value))
