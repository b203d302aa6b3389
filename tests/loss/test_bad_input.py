"""Bad input raises the right exception, with one sentence that names the argument, its value and what is expected."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torchvision import tv_tensors

import udskd
from tests.loss.helpers.inputs import backends, device_of, make

T, A, B = (torch.randn(4, 6) for _ in range(3))
Y = torch.tensor([0, 1, 2, 3])
GOOD: dict[str, Any] = {"teacher": T, "student_a": A, "student_b": B, "target": Y}


def nested(x: torch.Tensor, *, jagged: bool = False) -> torch.Tensor:
    return torch.nested.nested_tensor(list(x.split(2)), layout=torch.jagged if jagged else torch.strided)


def call(**changes: Any) -> udskd.DualStudentLossOutput:
    given = GOOD | changes
    return udskd.dual_student_loss(**given)


def test_the_good_arguments_are_good() -> None:
    assert call().loss.isfinite()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"student_a": torch.randn(6)}, ["student_a", "[6]"]),
        ({"student_a": torch.randn(4, 1)}, ["student_a", "two classes", "[4, 1]"]),
        ({"student_a": torch.randn(())}, ["student_a", "[]"]),
        ({"student_b": torch.randn(4, 7)}, ["student_b", "student_a", "[4, 7]", "[4, 6]"]),
        ({"teacher": torch.randn(5, 6)}, ["teacher", "student_a", "[5, 6]", "[4, 6]"]),
        ({"teacher": torch.randn(2, 2, 6)}, ["teacher", "[2, 2, 6]"]),
        ({"target": torch.zeros(5, dtype=torch.long)}, ["target", "[4]", "[5]"]),
        ({"target": torch.zeros(4, 6, dtype=torch.long)}, ["target", "[4]", "[4, 6]"]),
        ({"target": torch.rand(4)}, ["target", "[4, 6]", "[4]"]),
        ({"target": torch.rand(4, 5)}, ["target", "[4, 6]", "[4, 5]"]),
        ({"kd_weight": torch.rand(3)}, ["kd_weight", "[4]", "[3]"]),
        ({"ce_weight": torch.rand(4, 6)}, ["ce_weight", "[4, 6]"]),
        ({"uncertainty": torch.rand(6)}, ["uncertainty", "[4]", "[6]"]),
        ({"uncertainty": torch.tensor(1.0)}, ["uncertainty", "[4]", "[]"]),
        ({"temperature": 0}, ["temperature", "0"]),
        ({"temperature": -1.0}, ["temperature", "-1.0"]),
        ({"temperature": math.nan}, ["temperature", "nan"]),
        ({"target": torch.nn.functional.one_hot(Y, 6)}, ["target", "[4, 6]", "one-hot", ".float()"]),
        ({"ignore_index": 2**63}, ["ignore_index", "int64"]),
        ({"ce_weight": 10**5000}, ["ce_weight", "float32", "an integer of 16610 bits"]),
        ({"peer_temperature": math.inf}, ["peer_temperature", "inf"]),
        ({"uncertainty_temperature": 0.0}, ["uncertainty_temperature", "0.0"]),
        ({"ce_weight": -0.1}, ["ce_weight", "-0.1"]),
        ({"kd_weight": math.inf}, ["kd_weight", "inf"]),
        ({"peer_weight": math.nan}, ["peer_weight", "nan"]),
        ({"label_smoothing": 1.0}, ["label_smoothing", "[0, 1)", "1.0"]),
        ({"label_smoothing": -0.1}, ["label_smoothing", "-0.1"]),
        ({"uncertainty": "entropie"}, ["uncertainty", "'entropie'", "'entropy'", "'max_prob'", "'margin'", "'none'"]),
        ({"trust": "nobody"}, ["trust", "'nobody'", "'confident'", "'uncertain'"]),
        ({"reduction": "batchmean"}, ["reduction", "'batchmean'", "'mean'", "'sum'", "'none'"]),
        ({"backend": "triton"}, ["backend", "'triton'", "'auto'", "'cuda'", "'cpu'", "'reference'"]),
        ({"label_smoothing": 10**5000}, ["label_smoothing", "[0, 1)", "an integer of 16610 bits"]),
        ({"trust": torch.zeros(9, 9)}, ["trust", "'confident', 'uncertain', got torch.Tensor"]),
        ({"backend": A.numpy()}, ["backend", "'reference', got numpy.ndarray"]),
        ({"reduction": "x" * 5000}, ["reduction", "'none', got 'xxxxxxxxxxxx...xxxxxxxxxxxxx'"]),
        ({"teacher": torch.randn(4, 6, device="meta")}, ["teacher", "student_a", "meta", "cpu"]),
        ({"target": Y.to("meta")}, ["target", "meta", "cpu"]),
        ({"kd_weight": torch.tensor(1.0, device="meta")}, ["kd_weight", "meta", "cpu"]),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_wrong_values(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=words[0]) as caught:
        call(**changes)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"student_a": A.long()}, ["student_a", "int64", "float32"]),
        ({"teacher": T.bool()}, ["teacher", "bool"]),
        ({"teacher": T.to(torch.complex64)}, ["teacher", "complex64"]),
        ({"student_b": B.double()}, ["student_b", "float32", "float64"]),
        ({"student_a": [[1.0, 2.0]]}, ["student_a", "list"]),
        ({"student_a": None}, ["student_a", "NoneType"]),
        ({"teacher": SimpleNamespace(logits=T)}, ["teacher", "SimpleNamespace", ".logits"]),
        ({"student_a": {"logits": A}}, ["student_a", "dict", '["logits"]']),
        ({"student_b": (B,)}, ["student_b", "tuple", "[0]"]),
        ({"teacher": T.numpy()}, ["teacher", "ndarray", "torch.from_numpy"]),
        ({"teacher": T.to_sparse()}, ["teacher", "sparse_coo", "to_dense"]),
        ({"student_a": A.to_mkldnn()}, ["student_a", "_mkldnn", "to_dense"]),
        ({"target": torch.rand(4, 6).to_sparse()}, ["target", "sparse_coo", "to_dense"]),
        ({"kd_weight": torch.rand(4).to_sparse()}, ["kd_weight", "sparse_coo", "to_dense"]),
        ({"student_a": nested(A)}, ["student_a", "nested", "ignore_index"]),
        ({"student_a": nested(A, jagged=True)}, ["student_a", "nested", "ignore_index"]),
        ({"target": torch.nn.functional.one_hot(Y, 6).bool()}, ["target", "bool", "one-hot", ".float()"]),
        ({"ignore_index": 255.0}, ["ignore_index", "integer", "float"]),
        ({"ignore_index": True}, ["ignore_index", "integer", "bool"]),
        ({"ignore_index": None}, ["ignore_index", "integer", "NoneType"]),
        ({"normalize_weights": "yes"}, ["normalize_weights", "True or False", "str"]),
        ({"detach_peer": 1}, ["detach_peer", "True or False", "int"]),
        ({"temperature": True}, ["temperature", "bool"]),
        ({"target": Y.int()}, ["target", "int64", "int32"]),
        ({"target": Y.bool()}, ["target", "bool"]),
        ({"target": [0, 1, 2, 3]}, ["target", "list"]),
        ({"temperature": "4"}, ["temperature", "str"]),
        ({"kd_weight": None}, ["kd_weight", "NoneType"]),
        ({"kd_weight": torch.tensor(1)}, ["kd_weight", "int64"]),
        ({"uncertainty": torch.ones(4, dtype=torch.long)}, ["uncertainty", "int64"]),
        ({"label_smoothing": "0"}, ["label_smoothing", "str"]),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_wrong_types(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(TypeError) as caught:
        call(**changes)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "order"), [((2, 5, 3), "0, 2, 1"), ((2, 5, 4, 3), "0, 2, 3, 1"), ((2, 5, 2, 4, 3), "0, 2, 3, 4, 1")]
)
def test_logits_whose_labels_prove_that_classes_come_second(shape: tuple[int, ...], order: str) -> None:
    labels = torch.zeros(shape[:1] + shape[2:], dtype=torch.long)
    with pytest.raises(ValueError, match=rf"^student_a must have its classes last.* permute\({order}\)"):
        udskd.dual_student_loss(None, torch.randn(shape), None, labels)


@pytest.mark.parametrize("backend", backends("cpu"))
def test_a_label_that_is_no_class_is_named_under_torch_compile(backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(udskd.dual_student_loss, fullgraph=True, backend="aot_eager")
    for student in (A, A.clone().requires_grad_()):
        with pytest.raises(IndexError, match=r"^target: row 2 has label 6, expected 0 to 5 or ignore_index -100$"):
            compiled(T, student, B, torch.tensor([0, 1, 6, 3]), backend=backend)


TRANSFORMS: dict[str, Any] = {
    "grad": lambda f, x: torch.func.grad(f)(x),
    "vjp": lambda f, x: torch.func.vjp(f, x)[1](torch.ones(())),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "vmap": lambda f, x: torch.func.vmap(f)(torch.stack([x, x])),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "hessian": lambda f, x: torch.func.hessian(f)(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("backend", backends("cpu", "emulated"))
def test_transforms_of_torch_func_are_refused_with_the_way_out(backend: str, transform: Any) -> None:
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        transform(lambda a: call(student_a=a, backend=backend).loss, A)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_the_way_out_of_transforms_is_one(transform: Any) -> None:
    each = torch.rand(4)
    transform(lambda a: call(student_a=a, backend="reference", kd_weight=each).loss, A)


@pytest.mark.parametrize("label", [6, -1, 10**12, -101])
@pytest.mark.parametrize("backend", backends("reference", "cpu"))
def test_a_label_that_is_no_class_is_named_on_the_cpu(backend: str, label: int) -> None:
    with pytest.raises(IndexError, match=rf"^target: row 2 has label {label}, expected 0 to 5 or ignore_index -100$"):
        call(target=torch.tensor([0, 1, label, label]), backend=backend)


@pytest.mark.parametrize("backend", backends("reference", "cpu"))
def test_a_label_in_a_subclass_of_tensor_is_named_too(backend: str) -> None:
    mask = tv_tensors.Mask(torch.tensor([0, 1, 6, 3]))
    with pytest.raises(IndexError, match="row 2 has label 6"):
        call(target=mask, backend=backend)


@pytest.mark.parametrize("backend", backends("reference", "cpu", "emulated"))
def test_ignore_index_may_be_any_number(backend: str) -> None:
    labels = torch.tensor([0, 255, 2, 3])
    ignored = call(target=labels, ignore_index=255, backend=backend)
    rest = [x[[0, 2, 3]] for x in (T, A, B, labels)]
    torch.testing.assert_close(ignored.loss, udskd.dual_student_loss(*rest, backend=backend).loss)


@pytest.mark.parametrize("backend", backends("emulated", "cuda"))
def test_a_label_that_is_no_class_makes_its_row_nan_on_a_gpu(backend: str) -> None:
    made = make(4, 6, dtype=torch.float32).like(device=device_of(backend))
    labels = torch.tensor([0, 1, 6, -3], device=device_of(backend))
    out = udskd.dual_student_loss(*made.inputs[:3], labels, reduction="none", backend=backend)
    assert out.loss.isnan().tolist() == [False, False, True, True]
    gradient = torch.autograd.grad(out.loss.sum(), made.student_a)[0]
    assert gradient.isnan().all(1).tolist() == [False, False, True, True]


def test_an_unavailable_backend_says_why() -> None:
    if torch.cuda.is_available():
        with pytest.raises(ValueError, match="needs tensors on 'cuda'"):
            call(backend="cuda")
    else:
        with pytest.raises(ValueError, match="'cuda' is unavailable: "):
            call(backend="cuda")


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="temprature"):
        call(temprature=2.0)
