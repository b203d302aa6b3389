"""Random hostile calls of the raw operators, made in a child process: if a signal ends the child, the report names the
call."""

from __future__ import annotations

import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from udskd.loss.options import Modes, Scalars

ROWS, CLASSES = 5, 19
SECONDS = 120  # after which a child counts as hanging; SIGALRM ends it
DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool),
    *(torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2, torch.int16, torch.uint16),
)
SHAPES: tuple[tuple[int, ...], ...] = (
    *((ROWS, CLASSES), (ROWS, 0), (0, CLASSES), (0, 0), (ROWS, 1), (ROWS, 2), (ROWS + 1, CLASSES), (1, CLASSES)),
    *((ROWS, CLASSES + 1), (CLASSES, ROWS), (ROWS,), (CLASSES,), (0,), (), (ROWS, CLASSES, 1), (1, ROWS, CLASSES)),
    *((ROWS, 20), (ROWS, 3), (1, 1, 1, 1)),
)
NUMBERS = (0.0, 1.0, -1.0, 0.5, 4.0, 1e-300, 1e300, 1e-7, 1e7, -0.0, float("inf"), float("-inf"), float("nan"))
INTEGERS = (0, 1, 2, 3, 4, 5, 99, -1, -100, CLASSES, 2**31, -(2**31), 2**62, 2**63 - 1, -(2**63))
Laying = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Call:
    """One call of a raw operator; `text` describes it in messages."""

    operator: Any
    arguments: tuple[Any, ...]

    @property
    def text(self) -> str:
        return f"{self.operator}({', '.join(map(describe, self.arguments))})"


def describe(x: Any) -> str:
    if not isinstance(x, Tensor):
        return repr(x)
    if x.layout != torch.strided:
        return f"{x.layout} {x.dtype} {list(x.shape)}"
    return f"{x.device.type} {x.dtype} {list(x.shape)} strides {list(x.stride())}"


def shrunk(x: Tensor) -> Tensor:
    """A tensor that reaches beyond the end of its storage."""
    x = x.clone()
    x.untyped_storage().resize_(x.untyped_storage().nbytes() // 2)
    return x


def unaligned(x: Tensor) -> Tensor:
    """The same values from an odd address."""
    size = x.numel() * x.element_size()
    memory = torch.zeros(size + 1, dtype=torch.uint8)
    if size == 0 or x.dtype.is_complex:
        return x
    memory[1:] = x.contiguous().reshape(-1).view(torch.uint8)
    return torch.frombuffer(memory.numpy(), dtype=x.dtype, count=x.numel(), offset=1).view(x.shape)


def wide(x: Tensor) -> Tensor:
    """Every element `CLASSES` apart from the next."""
    return torch.stack([x] * CLASSES, -1)[..., 0]


LAYINGS: tuple[Laying, ...] = (
    lambda x: x,
    lambda x: x.t().contiguous().t() if x.dim() == 2 else x,
    lambda x: x[:1].expand(x.shape) if x.dim() else x,
    lambda x: x[..., :1].expand(x.shape) if x.dim() and x.shape[-1] else x,
    wide,
    shrunk,
    unaligned,
    lambda x: x.to("meta"),
    lambda x: x.to_sparse() if x.dtype != torch.uint16 and not x.dtype.is_floating_point else x,
    lambda x: x.to_mkldnn() if x.dtype == torch.float32 and x.dim() else x,
    lambda x: torch.complex(torch.zeros_like(x), x).conj().imag if x.dtype == torch.float32 else x,
    lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype) if x.dtype == torch.float32 else x,
)


class Draw:
    """Draws hostile arguments. About a third of all calls have only one wrong argument, so that its check is
    reached."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def tensor(self) -> Tensor | None:
        """A tensor of any shape, dtype and layout, or None."""
        if self.random.random() < 0.1:
            return None
        x = self.values(self.random.choice(SHAPES)).to(self.random.choice(DTYPES))
        laying = self.random.choice(LAYINGS) if self.random.random() < 0.5 else LAYINGS[0]
        try:
            return laying(x)
        except (RuntimeError, NotImplementedError):  # no such layout of this dtype
            return x

    def values(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator) * self.random.choice((1.0, 30.0, 1e30))

    def labels(self) -> Tensor:
        labels = torch.randint(0, CLASSES, (ROWS,), generator=self.generator)
        for _ in range(self.random.randrange(3)):
            labels[self.random.randrange(ROWS)] = self.random.choice(INTEGERS)
        return labels

    def one_of(self, good: Any, hostile: Sequence[Any], share: float) -> Any:
        return self.random.choice(hostile) if self.random.random() < share else good

    def arguments(self, good: Sequence[Any]) -> tuple[Any, ...]:
        """The good arguments, of which one or a random subset is replaced."""
        alone = self.random.randrange(len(good)) if self.random.random() < 0.35 else None
        out = []
        for place, value in enumerate(good):
            share = float(place == alone) if alone is not None else 0.12
            if isinstance(value, Tensor) or value is None:
                out.append(self.tensor() if self.random.random() < share else value)
            elif isinstance(value, list):
                out.append(self.list_like(value, share))
            else:
                out.append(self.one_of(value, INTEGERS, share))
        return tuple(out)

    def list_like(self, good: list[Any], share: float) -> list[Any]:
        """The list with some elements replaced, or a list of another length."""
        wrong = NUMBERS if isinstance(good[0], float) else (False, True) if isinstance(good[0], bool) else INTEGERS
        if self.random.random() < share / 3:
            return [self.random.choice(wrong) for _ in range(self.random.randrange(2 * len(good)))]
        each = 1 / len(good) if share == 1 else share
        return [self.one_of(x, wrong, each) for x in good]


def good_arguments(draw: Draw, columns: int, seldom: bool) -> dict[str, tuple[Any, ...]]:
    """By operator, arguments that it accepts. seldom: logits and coefficients of the less common dtypes and shapes."""
    dtype = draw.random.choice(DTYPES[:4]) if seldom else torch.float32
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    teacher, a, b = (draw.values((ROWS, CLASSES)).to(dtype) for _ in range(3))
    soft = torch.softmax(draw.values((ROWS, CLASSES)), -1).to(draw.random.choice(DTYPES[:4]))
    target = draw.random.choice((draw.labels(), soft, None))
    each, one = torch.rand(ROWS, dtype=arithmetic), torch.rand((), dtype=arithmetic)
    weights = [draw.random.choice((None, each, one)) for _ in range(3)] if seldom else [None] * 3
    certainty = draw.random.choice((None, each))
    scalars = Scalars(peer_temperature=draw.random.choice((4.0, 2.0)), label_smoothing=0.1 * draw.random.randrange(2))
    modes = Modes(draw.random.randrange(4), *(draw.random.randrange(2) for _ in range(3)))
    inputs = (teacher, a, b, target, *weights, certainty, [*scalars])
    needs = [draw.random.random() < 0.7 for _ in range(4)]
    rows = torch.rand(ROWS, columns, dtype=arithmetic) * 3
    grad = torch.ones((), dtype=arithmetic)
    return {
        "dual_student_loss": (*inputs, [*modes._replace(reduction=draw.random.randrange(3))]),
        "dual_student_loss_fused": (*inputs, [*modes._replace(reduction=draw.random.randrange(2))], needs[:3]),
        "dual_student_loss_backward": (grad, rows, *inputs, [*modes], needs),
        "dual_student_loss_scale": (grad, rows, teacher.clone(), a.clone(), torch.empty(0)),
    }


def image_arguments(draw: Draw) -> dict[str, tuple[Any, ...]]:
    """The same for the operators on images."""
    side, size = 9, 4
    pixels = torch.zeros(2 * side * side * 3, dtype=torch.uint8)
    offsets, shapes = torch.tensor([0, side * side * 3]), torch.tensor([[side, side]] * 2)
    views = torch.tensor([[1, 1, 8, 8, size, size, 0, 0]] * 2)
    for table in (offsets, shapes, views):
        if draw.random.random() < 0.4:
            table.view(-1)[draw.random.randrange(table.numel())] = draw.random.choice(INTEGERS)
    out = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    one = (pixels[: side * side * 3].view(side, side, 3), 1, 1, 8, 8, size, size, 0, 0, out[0].clone())
    three = torch.rand(3)
    batch = torch.zeros(3, side, side, 3, dtype=torch.uint8)
    floats = torch.zeros(2, 3, side, side)
    return {
        "crop_resize": (pixels, offsets, shapes, views, out),
        "crop_resize_one": one,
        "normalize_views": (batch, torch.rand(3) < 0.5, torch.rand(2), three, three.clone(), floats),
    }


def calls(namespace: Any, columns: int, seed: int, count: int, *, images: bool) -> list[Call]:
    """Hostile calls of the operators of a namespace."""
    draw = Draw(seed)
    found = []
    while len(found) < count:
        made = image_arguments(draw) if images else good_arguments(draw, columns, draw.random.random() < 0.5)
        name = draw.random.choice(list(made))
        found.append(Call(getattr(namespace, name).default, draw.arguments(made[name])))
    return found


def survivors(made: Sequence[Call]) -> tuple[int, str | None]:
    """Makes the calls in a child process. Returns how many returned, and the call and signal that ended the child.

    An exception of any kind is allowed. A child inherits the state of this process, so that nothing is loaded again.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _make(made, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        progress = pipe.read().decode().split()
    _, status = os.waitpid(child, 0)
    begun, returned = progress.count("b"), progress.count("r")
    if os.WIFSIGNALED(status) or os.WEXITSTATUS(status) != 0:
        how = (
            signal.Signals(os.WTERMSIG(status)).name
            if os.WIFSIGNALED(status)
            else f"exit status {os.WEXITSTATUS(status)}"
        )
        return returned, f"{how} in call {begun - 1}: {made[begun - 1].text}"
    assert begun == len(made)
    return returned, None


def _make(made: Sequence[Call], progress: int) -> None:
    """The calls in the child, which exits at the end."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        torch.set_num_threads(1)  # those of the parent are not in the child, which would wait for them
        for call in made:
            os.write(progress, b"b ")
            try:
                call.operator(*call.arguments)
                os.write(progress, b"r ")
            except Exception:  # of any kind is allowed
                continue
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
