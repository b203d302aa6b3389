"""Networks that other code builds: timm's ("timm:NAME") and those of a function or a class ("package.module:NAME")."""

from __future__ import annotations

import importlib
import inspect
import itertools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import udskd
from udskd.config.suggest import did_you_mean
from udskd.errors import ConfigError, NetworkCodeError, explain_missing_packages

_LIBRARIES = (os.path.dirname(udskd.__file__), os.path.dirname(torch.__file__), "<frozen importlib")
Options = Mapping[str, Any]
TIMM = "timm:"
_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_RESERVED = ("num_classes", "pretrained", "features_only", "checkpoint_path")
"""Arguments that udskd sets, or for which other options exist."""


def is_imported(name: str) -> bool:
    """Whether other code builds the network of this name."""
    return ":" in name


def build(name: str, num_classes: int, image_size: int, options: Options) -> nn.Module:
    """The network with random weights, whose output is its logits alone.

    options: further keyword arguments. Raises ConfigError for an unknown name or option, MissingPackage without timm,
    and NetworkCodeError for an error of the code that builds the network.
    """
    for reserved in _RESERVED:
        if reserved in options:
            raise ConfigError(f'the options of model "{name}" must not contain "{reserved}", which udskd sets')
    if name.startswith(TIMM):
        module = _timm(name, num_classes, image_size, options)
    else:
        module = _call(name, num_classes, options)
    module.register_forward_hook(take_logits)
    return module


def timm_names() -> list[str]:
    """The names of timm's networks; [] if timm is not installed."""
    try:
        import timm
    except ImportError:
        return []
    return [TIMM + name for name in timm.list_models()]


def takes_any_caller(name: str) -> bool:
    """Whether the function of a network can be called with any arguments, because it does not name num_classes. A file
    of weights must not cause such a call: torch.hub.load, for one, would run the code that its arguments name."""
    return not name.startswith(TIMM) and "num_classes" not in _parameters(_find(name))


def take_logits(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor | None:
    """A forward hook that replaces an output by the logits in it: the first of a tuple, "logits" of a mapping or of an
    object. ConfigError if there are none."""
    if isinstance(output, Tensor):
        return None
    logits = _logits_in(output)
    if not isinstance(logits, Tensor):
        raise ConfigError(
            f"the network returns {_described(output)}; it must return its logits, a tensor [B, classes], or a tuple "
            'that begins with them, or a mapping or an object that has them as "logits"'
        )
    return logits


def _logits_in(output: Any) -> Any:
    if isinstance(output, Mapping):
        return output.get("logits")
    if isinstance(output, (tuple, list)):
        return output[0] if output else None
    return getattr(output, "logits", None)


def _described(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} of {', '.join(map(repr, output)) or 'nothing'}"
    return f"a {type(output).__name__}"


def _timm(name: str, num_classes: int, image_size: int, options: Options) -> nn.Module:
    with explain_missing_packages():
        import timm

    architecture = name.removeprefix(TIMM)
    if not timm.is_model(architecture):
        known = [TIMM + one for one in timm.list_models()]
        raise ConfigError(f'timm has no model "{architecture}"{did_you_mean(name, known)}; timm.list_models() has all')
    config = timm.get_pretrained_cfg(architecture.partition(".")[0])
    # networks with an embedding for each patch are built for one size
    size = {"img_size": image_size} if config is not None and config.fixed_input_size else {}
    try:
        module: nn.Module = timm.create_model(
            architecture, pretrained=False, num_classes=num_classes, **{**size, **options}
        )
    except Exception as error:
        raise _timm_error(name, image_size, options, error) from error
    return module


def _timm_error(name: str, image_size: int, options: Options, error: Exception) -> ConfigError:
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if found is not None and found[1] in options:
        return _unknown_option(name, found[1], _timm_parameters(name))
    reason = (str(error) or type(error).__name__).splitlines()[0]
    given = f" with the options {dict(options)}" if options else ""
    return ConfigError(f'model "{name}" cannot be built for images of {image_size} px{given}: {reason}')


def _timm_parameters(name: str) -> list[str]:
    """The arguments of the class of a timm network."""
    import timm

    with torch.device("meta"):
        return list(_parameters(type(timm.create_model(name.removeprefix(TIMM)))))


def _call(name: str, num_classes: int, options: Options) -> nn.Module:
    function = _find(name)
    parameters = _parameters(function)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if "num_classes" not in parameters and not takes_all:
        raise ConfigError(f'"{name}" must take the number of classes as the argument num_classes{_listed(parameters)}')
    for option in () if takes_all else options:
        if option not in parameters:
            raise _unknown_option(name, option, [p for p in parameters if p != "num_classes"])
    _check_required(name, parameters, options)
    with _explain(name):
        module = function(num_classes=num_classes, **options)
    if not isinstance(module, nn.Module):
        raise ConfigError(f'"{name}" must return a torch.nn.Module, got a {type(module).__name__}')
    return module


def _check_required(name: str, parameters: Mapping[str, inspect.Parameter], options: Options) -> None:
    for parameter in parameters.values():
        is_required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if is_required and parameter.name not in ("num_classes", *options):
            raise ConfigError(f'"{name}" needs the argument {parameter.name}: give it in the options of the model')


def _unknown_option(name: str, option: str, known: list[str]) -> ConfigError:
    near = did_you_mean(option, known)
    return ConfigError(f'model "{name}" has no option "{option}"{near}; it has {", ".join(known) or "none"}')


def _listed(parameters: Mapping[str, inspect.Parameter]) -> str:
    return f", but it has only {', '.join(parameters)}" if parameters else ", but it has no arguments"


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        parameters = dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # compiled code without a signature
        return {"options": inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)}
    return parameters


def _find(name: str) -> Callable[..., Any]:
    """The function or class "package.module:NAME", also from the working directory."""
    if not _FUNCTION.fullmatch(name):
        raise ConfigError(f'model "{name}" must be written as package.module:function, such as my_networks:small_net')
    module_name, _, attribute = name.partition(":")
    found: Any = _module(name, module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [known for known, value in vars(found).items() if callable(value) and not known.startswith("_")]
            where = getattr(found, "__file__", None) or module_name
            raise ConfigError(f'model "{name}": {where} has no "{part}"{did_you_mean(part, known)}')
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f'"{name}" must be a function or a class, got a {type(found).__name__}')
    return found  # type: ignore[no-any-return]


def _module(name: str, module_name: str) -> ModuleType:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # for good: the network may import more at its first use
    importlib.invalidate_caches()
    try:
        with _explain(name):
            return importlib.import_module(module_name)
    except NetworkCodeError as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and f"{module_name}.".startswith(f"{missing.name}."):
            raise ConfigError(
                f'model "{name}": there is no module "{missing.name}" in the working directory {os.getcwd()} or among '
                "the installed packages"
            ) from None
        raise


@contextmanager
def _explain(name: str) -> Iterator[None]:
    """NetworkCodeError in place of an error of the code that builds the network."""
    try:
        yield
    except Exception as error:
        raise code_error(name, error) from error


def code_error(name: str, error: Exception, what: str = "cannot be built") -> NetworkCodeError:
    """The error of a network's own code: one sentence, and the traceback from the first line of that code on."""
    frames = list(itertools.dropwhile(_is_of_a_library, traceback.extract_tb(error.__traceback__)))
    own = [frame for frame in frames if not _is_of_a_library(frame)]
    at = f" in {own[-1].filename}, line {own[-1].lineno}" if own else ""
    last = "".join(traceback.format_exception_only(error))
    reason = " ".join(last.split()) if not isinstance(error, SyntaxError) else f"{type(error).__name__}: {error.msg}"
    details = "".join([*traceback.format_list(frames), last])
    return NetworkCodeError(f'model "{name}" {what}, because its own code raised {reason}{at}', details)


def _is_of_a_library(frame: traceback.FrameSummary) -> bool:
    return frame.filename.startswith(_LIBRARIES)
