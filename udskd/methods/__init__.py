"""The methods by name: one file for each paper."""

from __future__ import annotations

from typing import Any, TypeVar

from udskd.config import rules
from udskd.config.schema import Config
from udskd.config.suggest import did_you_mean
from udskd.errors import ConfigError
from udskd.methods.akd import AdaptiveDistillation
from udskd.methods.base import COMPONENTS, Answers, Method, Needs, Setting, Shape, Shaped, TeacherStage
from udskd.methods.ce import CrossEntropy
from udskd.methods.context import Context
from udskd.methods.cud import CalibratedUncertainty, MassBounds, UncertaintyShaping, WrongMassClip
from udskd.methods.dkd import DecoupledDistillation
from udskd.methods.dml import MutualLearning
from udskd.methods.er_kd import EntropyReweighted
from udskd.methods.kd import Distillation, LongerTraining
from udskd.methods.sdkd import StudentDriven
from udskd.methods.udskd import UncertaintyAwareDualStudent
from udskd.methods.variance import Average, InverseVariance, VarianceAware
from udskd.methods.wsl import WeightedSoftLabels

__all__ = [
    "COMPONENTS",
    "Answers",
    "Method",
    "Needs",
    "Setting",
    "Shape",
    "Shaped",
    "TeacherStage",
    "build",
    "check",
    "get",
    "names",
    "teacher_stage",
]

_METHODS: dict[str, type[Method]] = {
    m.name: m
    for m in (
        *(CrossEntropy, Distillation, MutualLearning, UncertaintyAwareDualStudent),
        *(CalibratedUncertainty, VarianceAware, StudentDriven, AdaptiveDistillation),
        *(DecoupledDistillation, EntropyReweighted, WeightedSoftLabels),
    )
}
_SHAPES: dict[str, type[Shape]] = {s.name: s for s in (WrongMassClip, MassBounds, Average, InverseVariance, Context)}
_STAGES: dict[str, type[TeacherStage]] = {s.name: s for s in (UncertaintyShaping, LongerTraining)}

T = TypeVar("T", bound=type[Any])


def names() -> tuple[str, ...]:
    """Every method's name."""
    return tuple(_METHODS)


def get(name: str) -> type[Method]:
    """The class of a method; ConfigError with the list of known names for any other."""
    return _find("method", name, _METHODS)


def build(config: Config) -> Method:
    """The method of a run, with its target shapes. ConfigError for options that exclude each other."""
    method = get(config.method)
    wanted = method.shape if config.target.shape == "auto" else config.target.shape
    shape_names = [] if wanted == "none" else [name.strip() for name in wanted.split("+")]
    kinds = [_find("target.shape", name, _SHAPES, ("auto", "none")) for name in shape_names]
    if len(set(kinds)) < len(kinds):
        raise ConfigError(f'target.shape must name different shapes, got "{wanted}"')
    for option, asked in (("shape", kinds), ("weight", config.target.weight != "auto")):
        if asked and not method.uses_teacher:
            raise ConfigError(
                f'target.{option} is "{getattr(config.target, option)}", but method "{method.name}" has no teacher'
            )
    shapes = tuple(kind(config) for kind in kinds)
    for shape in shapes[1:]:
        if shape.needs.responses:
            raise ConfigError(
                f'target.shape is "{wanted}", but "{shape.name}" takes the teacher\'s own responses '
                f'({shape.needs.source}) and ignores a shape before it: put it first, or set variance.source to "draws"'
            )
    return method(config, shapes)


def teacher_stage(config: Config) -> TeacherStage | None:
    """The further training of a trained teacher before it is frozen, if there is one."""
    method = get(config.method)
    name = method.stage if config.teacher.stage == "auto" else config.teacher.stage
    if name == "none":
        return None
    if not method.uses_teacher:
        raise ConfigError(f'teacher.stage is "{name}", but method "{method.name}" has no teacher')
    return _find("teacher.stage", name, _STAGES, ("auto", "none"))(config)


def check(config: Config) -> None:
    """ConfigError naming options that exclude each other in the method, and values out of range. Called before a run
    starts."""
    rules.check(config)
    build(config)
    teacher_stage(config)


def _find(what: str, name: str, known: dict[str, T], others: tuple[str, ...] = ()) -> T:
    """others: further names that the option takes."""
    if name not in known:
        near, words = did_you_mean(name, known), ", ".join([*others, *known])
        raise ConfigError(f'unknown {what} "{name}"{near}; known are {words}')
    return known[name]
