"""One set of dataclasses: the recipe's keys, the command line's options and their help all come from here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args

from udskd.config.method_schema import AkdConfig, CudConfig, DkdConfig, SdkdConfig, TargetConfig, VarianceConfig

ROLES = ("teacher", "student_a", "student_b")
STUDENTS = ROLES[1:]
Stem = Literal["auto", "imagenet", "half", "small"]


@dataclass(frozen=True)
class DataConfig:
    root: str = "embedded"
    """Folder with train/CLASS/* and val/CLASS/*, or "embedded" for the generated set with a known posterior."""
    classes: int | None = None
    """Keep only the first N classes in sorted order; all by default."""
    image_size: int = 224
    """Side of the square training images, in pixels."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that a random resized crop covers, smallest and largest."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    mixup: float = 0.0
    """Alpha of mixup's Beta(alpha, alpha); 0 switches it off."""
    eval_crop: float = 0.875
    """Share of the resized image's side that the central evaluation crop keeps."""
    max_unreadable: float = 0.01
    """Share of the training images that may be unreadable (named, counted, skipped) before training stops."""
    loader: Literal["auto", "processes", "threads", "resident"] = "auto"
    """Who decodes images: worker processes, threads, or nobody, because the whole set was decoded once into the memory
    of the device ("resident"). The batches are the same, bit for bit."""
    workers: int = 2
    """Processes or threads that decode images; 0 decodes in the main process."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of each channel, images in [0, 1]."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel, images in [0, 1]."""


@dataclass(frozen=True)
class TeacherConfig:
    model: str = "resnet50"
    """A torchvision classification model, or one of udskd's tiny networks."""
    stem: Stem = "auto"
    """First layers: "imagenet" (stride 4), "half" (stride 2), "small" (stride 1); "auto" is the stem of the checkpoint
    (imagenet where it names none), and without one small below 96 px."""
    checkpoint: str | None = None
    """Weights of a trained teacher (teacher.safetensors of another run, or a torchvision state dict); else it is
    trained."""
    epochs: int | None = None
    """Epochs of the teacher's own training; training.epochs by default."""
    lr: float | None = None
    """Peak learning rate; training.lr by default."""
    weight_decay: float | None = None
    """Weight decay; training.weight_decay by default."""
    label_smoothing: float = 0.0
    """Label smoothing of the teacher's own training (smoothed teachers distil worse, so 0)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic in which the frozen teacher answers; auto is that of training.precision."""
    stage: Literal["auto", "none", "uncertainty_shaping", "cross_entropy"] = "auto"
    """Further training of the teacher before it is frozen; auto is the method's own."""
    cache: str | None = None
    """Folder that `udskd cache-teacher` wrote: its logits are used instead of the teacher, whose pass is saved."""


@dataclass(frozen=True)
class StudentConfig:
    model: str = "resnet18"
    """A torchvision classification model, or one of udskd's tiny networks."""
    stem: Stem = "auto"
    """First layers, as for the teacher; "auto" is small below 96 px."""
    lr: float | None = None
    """Peak learning rate of this student's optimiser group; training.lr by default."""
    weight_decay: float | None = None
    """Weight decay of this student's optimiser group; training.weight_decay by default."""


@dataclass(frozen=True)
class LossConfig:
    temperature: float = 4.0
    """Temperature of the teacher-to-student KL."""
    peer_temperature: float | None = None
    """Temperature of the KL between the students; the same as temperature by default."""
    ce_weight: float = 1.0
    """Weight of the cross-entropy."""
    kd_weight: float = 0.9
    """Weight of the teacher-to-student KL."""
    peer_weight: float = 0.5
    """Weight of the KL between the students."""
    uncertainty: Literal["entropy", "max_prob", "margin", "none"] = "entropy"
    """How the teacher's certainty weights each image's distillation."""
    trust: Literal["confident", "uncertain"] = "confident"
    """Which images weigh more: those the teacher is sure of, or those it is not."""
    normalize_weights: bool = False
    """Divide the weights by their batch mean, so that they do not change the average weight of distillation."""
    uncertainty_temperature: float = 1.0
    """Temperature at which the teacher's certainty is measured."""
    detach_peer: bool = True
    """Whether a student's KL towards its peer leaves the peer alone."""
    label_smoothing: float = 0.0
    """Label smoothing of the students' cross-entropy."""
    backend: Literal["auto", "cuda", "cpu", "reference"] = "auto"
    """Implementation of the loss."""


@dataclass(frozen=True)
class TrainingConfig:
    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 256
    """Images in one step, over all processes and parts."""
    accumulate: int = 1
    """Parts that a step's images are cut into, one after the other, to need less memory."""
    lr: float = 0.1
    """Peak learning rate (SGD with Nesterov momentum)."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay of convolution and linear weights; none on biases and batch-norm."""
    warmup_epochs: float = 5.0
    """Epochs of linear warm-up before the cosine decay."""
    clip_grad_norm: float = 0.0
    """Largest gradient norm, for each network separately; 0 does not clip."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights; 0 keeps none. With an average, it is what is evaluated
    and saved."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the networks: auto is bf16 autocast on CUDA and fp32 on the CPU; fp16 scales the loss."""
    channels_last: bool = True
    """Memory format of images and weights."""
    compile: bool = False
    """torch.compile each network."""
    cuda_graph: bool = False
    """Replay the whole step as one CUDA graph: for small images, where launching takes longer than computing."""
    sync_batchnorm: bool = False
    """Batch-norm over the images of all processes instead of each process's own."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    eval_every: int = 1
    """Evaluate after every N epochs, and always after the last."""
    save_every: float = 10.0
    """Minutes after which a step is saved in the middle of an epoch; 0 saves only after epochs and when stopped."""
    tensorboard: bool = False
    """Write TensorBoard events into the run folder as well (pip install 'udskd[tensorboard]')."""


METHOD_SECTIONS = ("cud", "variance", "sdkd", "akd", "dkd")


@dataclass(frozen=True)
class Config:
    method: str = "udskd"
    """One of ce, kd, dml, udskd, cud, variance, sdkd, akd, dkd, er_kd, wsl."""
    seed: int = 0
    """Seeds the weights, the order of the images and every view of them."""
    output: str | None = None
    """The run folder; runs/METHOD-DATA-seedN by default."""
    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student_a: StudentConfig = field(default_factory=StudentConfig)
    student_b: StudentConfig = field(default_factory=lambda: StudentConfig(model="mobilenet_v2"))
    loss: LossConfig = field(default_factory=LossConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    cud: CudConfig = field(default_factory=CudConfig)
    variance: VarianceConfig = field(default_factory=VarianceConfig)
    sdkd: SdkdConfig = field(default_factory=SdkdConfig)
    akd: AkdConfig = field(default_factory=AkdConfig)
    dkd: DkdConfig = field(default_factory=DkdConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def flatten(config: Config) -> dict[str, Any]:
    """Every option by its dotted name, as on the command line: {"method": ..., "data.root": ..., ...}."""
    flat: dict[str, Any] = {}
    for key, value in asdict(config).items():
        flat.update(
            {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
        )
    return flat


def value_type(hint: Any) -> Any:
    """The type of an option's value: that of its field, without None."""
    return next(kind for kind in get_args(hint) if kind is not NoneType) if NoneType in get_args(hint) else hint


def run_folder(config: Config) -> Path:
    """Where a run of these options goes: its output, or runs/METHOD-DATA-seedN."""
    return Path(config.output or f"runs/{config.method}-{Path(config.data.root).resolve().name}-seed{config.seed}")


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """The config with some options, given by their dotted names, replaced."""
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        config = replace(
            config, **{section: replace(getattr(config, section), **{key: value})} if section else {key: value}
        )
    return config
