"""The options of a run: the keys of a recipe, the options of the command line, and their help."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args

ROLES = ("teacher", "student_a", "student_b")
"""The networks of a run: the sections of a recipe, and the stems of the files of weights."""
STUDENTS = ROLES[1:]
Stem = Literal["auto", "imagenet", "half", "small"]
Weight = Literal["auto", "none", "entropy", "max_prob", "margin", "wsl"]


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
    max_pixels: int = 90_000_000
    """Largest number of pixels of an image, which is refused before it is decoded above that. Decoding needs 3 to 22
    bytes a pixel in each worker, depending on the format: at most 2 GB with this default."""
    max_unreadable: float = 0.01
    """Largest share of the training images that may be unreadable; those are named and skipped. Above this share,
    training stops."""
    loader: Literal["auto", "processes", "threads", "resident"] = "auto"
    """What decodes images: worker processes, threads, or neither, because the whole set is decoded once into the memory
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
    """A torchvision classification model, one of udskd's tiny networks, timm:NAME for one of timm's, or
    package.module:function for your own."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of a network of timm or of your own, as the section [teacher.options]; on the command line as
    an inline table, such as "{drop_rate = 0.1}"."""
    stem: Stem = "auto"
    """First layers: "imagenet" (stride 4), "half" (stride 2), "small" (stride 1); "auto" is that of the checkpoint
    ("imagenet" if the file names none), and without a checkpoint "small" below 96 px, else "imagenet"."""
    checkpoint: str | None = None
    """Weights of a trained teacher (teacher.safetensors of another run, or a torchvision state dict); without it,
    the run trains the teacher."""
    epochs: int | None = None
    """Epochs of the teacher's own training; training.epochs by default."""
    lr: float | None = None
    """Peak learning rate; training.lr by default."""
    weight_decay: float | None = None
    """Weight decay; training.weight_decay by default."""
    label_smoothing: float = 0.0
    """Label smoothing of the teacher's own training (smoothed teachers distil worse, so 0)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the frozen teacher; auto is that of training.precision."""
    stage: Literal["auto", "none", "uncertainty_shaping", "cross_entropy"] = "auto"
    """Further training of the teacher before it is frozen; auto is the method's own."""
    cache: str | None = None
    """Folder of logits that `udskd cache-teacher` wrote; with it, training needs no forward pass of the teacher."""


@dataclass(frozen=True)
class StudentConfig:
    model: str = "resnet18"
    """A torchvision classification model, one of udskd's tiny networks, timm:NAME for one of timm's, or
    package.module:function for your own."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of a network of timm or of your own, as for the teacher."""
    stem: Stem = "auto"
    """First layers, as for the teacher; "auto" is "small" below 96 px, else "imagenet"."""
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
    """Measure of the teacher's certainty, which weights the distillation of each image."""
    trust: Literal["confident", "uncertain"] = "confident"
    """Which images weigh more: those of which the teacher is certain, or those of which it is uncertain."""
    normalize_weights: bool = False
    """Divide the weights by their batch mean, so that they do not change the average weight of distillation."""
    uncertainty_temperature: float = 1.0
    """Temperature at which the teacher's certainty is measured."""
    detach_peer: bool = True
    """Whether the KL of a student towards its peer gives the peer no gradient."""
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
    """Parts into which the images of a step are split and processed in turn, which needs less memory."""
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
    """Decay of the exponential moving average of the weights; 0 keeps none. The averaged weights are those that
    are evaluated and saved."""
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


@dataclass(frozen=True)
class TargetConfig:
    shape: str = "auto"
    """Change of the teacher's logits before a student learns from them: none, wrong_mass_clip, mass_bounds, average,
    variance, context, or several joined by "+", applied from left to right; auto is the method's own."""
    weight: Weight = "auto"
    """Weight of the distillation of each image; auto is the method's own, "wsl" that of weighted soft labels; the
    others are those of loss.uncertainty."""


@dataclass(frozen=True)
class CudConfig:
    stage_epochs: int = 3
    """Epochs of the stage that trains the teacher further, to be uncertain about hard images."""
    stage_lr: float = 0.005
    """Peak learning rate of that stage."""
    gamma: float = 2.0
    """Exponent of the focal loss of that stage."""
    entropy_bonus: float = 0.1
    """Weight of the bonus for entropy on hard images in that stage."""
    max_weight: float = 3.0
    """Largest weight of an image in that stage; 1 gives all images the same."""
    eta: float = 0.5
    """Wrong-mass clipping: the largest share of the wrong class's probability that moves to the label."""
    margin: float = 0.7
    """Wrong-mass clipping: the largest share of the gap between the wrong class and the label that moves."""
    clip: Literal["before", "after"] = "before"
    """Whether probabilities are clipped before they are tempered, or after."""
    label_mass: float = 0.5
    """shape mass_bounds: the least probability of the label."""
    wrong_mass: float = 0.3
    """shape mass_bounds: the most probability of all classes together that the teacher ranks above the label."""


@dataclass(frozen=True)
class VarianceConfig:
    responses: int = 4
    """Number k of responses of the teacher to each image."""
    source: Literal["draws", "dropout", "views"] = "draws"
    """What the responses differ in: labels drawn from the teacher's distribution, dropout before its last layer, or
    views of the image."""
    dropout: float = 0.2
    """Probability of dropout, for source "dropout"."""
    student: Literal["auto", "peers", "draws"] = "auto"
    """Estimate of the student's variance: from the difference of the two students, or from a label drawn from its own
    distribution; auto is "draws" where source is "draws", else "peers"."""
    oracle: bool = False
    """Use the teacher's noise-free response in place of the student's estimate, as the published code does."""


@dataclass(frozen=True)
class SdkdConfig:
    stages: int = 3
    """Number of stages that are fused, counted from the last."""
    teacher_layers: str = "auto"
    """The layers of the teacher that are fused from, joined by commas; auto finds where the resolution changes."""
    student_a_layers: str = "auto"
    """The layers of student a that are fused into."""
    student_b_layers: str = "auto"
    """The layers of student b that are fused into."""
    feature_weight: float = 1.0
    """Weight of the distance between a student's features and its proxy's."""
    ramp_epochs: float = 5.0
    """Epochs over which the weight of the proxy grows from 0: at first the proxy is no better than the student."""
    lr: float | None = None
    """Peak learning rate of the fusion blocks; training.lr by default."""


@dataclass(frozen=True)
class AkdConfig:
    alpha: Literal["batch", "sample", "learned"] = "batch"
    """Share of the cross-entropy: from the gap between student and teacher, for a batch or each image; or learned."""
    gap: Literal["ce", "js", "ratio"] = "ce"
    """Measure of the gap: the difference of their cross-entropies, their Jensen-Shannon divergence, or the student's
    share of both cross-entropies, CE_s / (CE_t + CE_s)."""
    kappa: float = 1.0
    """How steeply alpha follows the difference of the cross-entropies."""
    decay: float = 0.9
    """Decay of the moving average of a batch's gap."""
    alpha_min: float = 0.1
    """Smallest alpha."""
    alpha_max: float = 0.9
    """Largest alpha."""
    guard: Literal["range", "kendall"] = "range"
    """What prevents a learned alpha from choosing the smaller loss: its range, or weights learned as noise levels."""
    width: int = 32
    """Features of each class in the context-aware module."""
    closeness: float = 0.1
    """Weight of the divergence from the teacher in the loss of the module."""
    lr: float | None = None
    """Peak learning rate of alpha and the module; training.lr by default."""


@dataclass(frozen=True)
class DkdConfig:
    alpha: float = 1.0
    """Weight of the label's part of the divergence."""
    beta: float = 8.0
    """Weight of the other classes' part."""
    ramp_epochs: float = 20.0
    """Epochs over which the weight of distillation grows from 0; at most half of the run."""


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
    """The type of an option's value: the annotation of its field without `| None`."""
    return next(kind for kind in get_args(hint) if kind is not NoneType) if NoneType in get_args(hint) else hint


def run_folder(config: Config) -> Path:
    """The folder of a run with these options: output, or runs/METHOD-DATA-seedN."""
    return Path(config.output or f"runs/{config.method}-{Path(config.data.root).resolve().name}-seed{config.seed}")


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """The config with some options, given by their dotted names, replaced."""
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        config = replace(
            config, **{section: replace(getattr(config, section), **{key: value})} if section else {key: value}
        )
    return config
