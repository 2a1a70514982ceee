"""The sections of a config: every field, its range, its default and, as its docstring, its
``--help``.

distill_config.py puts them together and says which of them are a run's identity. Every interval is
in images seen, never in steps. A range stands in the field's type, where pydantic reads it; every
number is finite, whatever its range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Interval, Lt, MaxLen

from sid_ray.config.auto import AUTO, OR_AUTO, Auto
from sid_ray.config.ranges import RULES

MOST = 10**15  # of a whole number that has no smaller maximum: beyond it tensors overflow
Whole = Annotated[int, Interval(ge=-MOST, le=MOST)]
Count = Annotated[int, Interval(ge=1, le=MOST)]
CountOrNone = Annotated[int, Interval(ge=0, le=MOST)]
Seed = Annotated[int, Interval(ge=-(2**63 - 1), le=2**63 - 1)]  # torch's, of 64 bits
Share = Annotated[float, Interval(ge=0, lt=1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Text = Annotated[str, MaxLen(4096)]  # the longest path of Linux


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The pretrained network to distil."""

    source: Text = ""
    """Network to distil: a weights file, a checkpoint in one file or a folder (path, https://,
    s3://, hf://OWNER/REPO/PATH), or builtin:NAME for one that ships.
    """
    text_encoder: Text = ""
    """Diffusers folder (path, hf://OWNER/REPO, s3://) with the text_encoder and tokenizer of a
    teacher that reads text and has none beside it, like a SiD-LSG file, or with the tokenizer alone
    for a checkpoint in one file; empty for its own. It may move between two starts of a run; its
    content must be the same.
    """
    vae: Text = ""
    """Diffusers folder, or .safetensors file, with the vae of a teacher of latents that has none
    beside it; empty for its own.
    """
    lora: Text = ""
    """LoRA that is merged into the teacher before anything else: a file or folder of diffusers,
    PEFT or kohya (path, https://, s3://, hf://OWNER/REPO[/FILE]); empty for none. It may move
    between two starts of a run; its content must be the same.
    """
    lora_scale: float = 1.0
    """Factor of the LoRA: weights become W + lora_scale * alpha / rank * B A."""
    initial_generator: Text = ""
    """Where the generator starts instead of at the teacher (SiD2A): a one-step generator's weights,
    or one of our checkpoints. The fake score starts from the teacher all the same.
    """
    resolution: Annotated[int, Interval(ge=0, le=16_384)] = 0
    """Pixels a side of the images that are distilled, for a teacher whose network takes several
    sizes: a multiple of what its VAE divides sides by. 0 for the network's own.
    """
    dropout: Annotated[float, Lt(1)] = -1.0
    """Dropout of fake score and generator while they are trained; below 0 for the teacher file's
    own.
    """


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Low-rank adapters (LoRA) instead of whole networks: the teacher's weights are held once, and
    fake score and generator are these with small changes that are trained.
    """

    rank: Annotated[int, Interval(ge=0, le=16_384)] = 0
    """Rank of the adapters; 0 to train whole networks."""
    alpha: NotNegative = 0.0
    """Changes are alpha / rank * B A; 0 for the rank, a factor of 1."""
    targets: Text = ""
    """Layers that adapters go into, as endings of their names with commas between them; * is any
    text. Empty for the family's own: attention and what follows it.
    """
    roles: Literal["both", "fake", "generator"] = "both"
    """Which networks are adapters; the other one is trained whole."""
    base: Literal["auto", "float32", "bfloat16", "float16", "8bit", "4bit"] = "auto"
    """How the teacher's weights are held. auto: in training.precision, which changes no number.
    8bit (integers, a scale a row) and 4bit (bitsandbytes' NF4) are of linear layers in blocks.
    """

    def of(self, role: str) -> bool:
        """Whether ``fake_score`` or ``generator`` is an adapter."""
        return bool(self.rank) and self.roles in ("both", role.removesuffix("_score"))


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The loss. Guidance scales are SiD-LSG's kappa1 to kappa4, for teachers that read text."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = RULES

    name: Text = "sid"
    """Objective: sid (data-free), sida (adversarial, needs real images), lsg (sid with guidance, on
    a text-to-image teacher), vsd (variational score distillation, a baseline), or one of an
    installed package, whose own fields then stand here too.
    """
    compat: Literal["none", "official"] = "none"
    """official: behave as the published code where it was corrected here (docs/objectives.md). On
    EDM2 the discriminator's loss also trains the log-variance head, and forced normalisation acts
    before each pass of a network's own phase instead of after its update: on fake score and
    generator without a discriminator, whatever training.normalize_weights says; with one on the
    generator alone. Of several evaluations an image, the last output is matched and all are
    trained. Gradients that are not finite are replaced (0 for NaN, +-1e5 for inf) instead of
    skipping the update.
    """
    alpha: float = 1.2
    """Weight of the Delta^2 correction in the generator loss; published runs use 1.0 and 1.2."""
    fake_scale: float = 1.0
    """Constant factor of the fake-score loss (published: ls)."""
    generator_scale: float = 100.0
    """Constant factor of the generator loss (published: lsg)."""
    generator_dropout: bool = True
    """Dropout in the generator while it is trained, as published."""
    logvar: bool = False
    """Weight both losses by the fake score's log-variance head (EDM2)."""
    augment: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Probability of each transform of EDM's augmentation pipe in the fake-score phase."""
    num_steps: Annotated[int, Interval(ge=1, le=1_000)] = 1
    """Evaluations of the generator an image. Above 1, a random one of them is trained in each
    iteration; those before it run without gradient (compat official: all are trained, as one, but
    for flow matching).
    """
    adversarial_weight: NotNegative = 0.01
    """sida: factor of the generator's adversarial loss (published: lsg_gan)."""
    discriminator_weight: NotNegative = 1.0
    """sida: factor of the discriminator's loss (published: lsd; 1 for EDM, 100 for EDM2)."""
    generator_start: CountOrNone = 0
    """sida: the generator stays as it is until this many images are seen (published: 100,000)."""
    adversarial_start: CountOrNone = 0
    """sida: after this many images the generator's loss is half SiD's, half adversarial
    (published: 200,000).
    """
    kappa1: float = 1.0
    """Guidance scale of the fake score in its own loss. 1 is the text alone, 0 the empty prompt."""
    kappa2: float = 1.0
    """Guidance scale of the fake score in the generator loss's Delta."""
    kappa3: float = 1.0
    """Guidance scale of the fake score in that loss's second factor (published: as kappa2)."""
    kappa4: float = 1.0
    """Guidance scale of the teacher in the generator's loss."""
    text_dropout: Share = 0.1
    """Share of prompts replaced by the empty one in the fake-score phase, where the fake score is
    guided.
    """


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Noise levels: the fields of the teacher's kind are used, the others ignored."""

    kind: Text = "edm"
    """The teacher's: edm (EDM, EDM2), vp (Stable Diffusion: discrete, variance-preserving), flow
    (flow matching: SD3, SANA), guided-flow (the same, told its guidance scale: FLUX), or what its
    family says.
    """
    p_mean: float = -1.2
    """edm: mean of ln(sigma) in the fake-score phase; -0.4 for EDM2 at 512 pixels."""
    p_std: Positive = 1.2
    """edm: standard deviation of ln(sigma) in the fake-score phase; 1.0 for EDM2 at 512 pixels."""
    sigma_min: Positive = 0.002
    """edm: lowest noise level of the rho grid."""
    sigma_max: float = 80.0
    """edm: highest noise level of the rho grid."""
    rho: Positive = 7.0
    """edm: curvature of the rho grid."""
    t_max: Annotated[float, Interval(gt=0, le=1)] = 0.8
    """edm: part of the rho grid, from its clean end, that the generator phase draws from."""
    init_sigma: Positive = 2.5
    """edm: noise level at which the generator reads its noise."""
    beta_schedule: Literal["scaled_linear", "linear"] = "scaled_linear"
    """vp: the teacher's, as in its scheduler_config.json; so are the next five."""
    beta_start: float = 0.00085
    """vp: first beta."""
    beta_end: float = 0.012
    """vp: last beta."""
    num_train_timesteps: Whole = 1000
    """vp: number of betas."""
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    """vp: what the teacher's network predicts."""
    rescale_zero_snr: bool = False
    """vp: whether the last timestep is pure noise (rescale_betas_zero_snr of its scheduler)."""
    timestep_min: Whole = 20
    """vp: both phases draw timesteps from here ..."""
    timestep_max: Whole = 980
    """vp: ... to below here."""
    init_timestep: Whole = 625
    """vp: timestep at which the generator reads its noise."""
    time_mean: float = 0.6931471805599453
    """flow: both phases draw a time sigmoid(time_mean + time_std * n), n normal; log 2 as
    published: half of the times are noisier than 2/3.
    """
    time_std: Positive = 1.6
    """flow: see time_mean."""
    weighting: Literal[
        "1_minus_sigma", "1_minus_sigma_squared", "snr_sqrt", "snr", "1_over_sigma",
        "1_over_sigma2", "sid_legacy",
    ] = "1_minus_sigma"  # fmt: skip
    """flow: weight w of the generator's loss, by its published name (docs/objectives.md)."""
    init_time: Annotated[int, Interval(ge=1, le=999)] = 999
    """flow: the generator reads its noise at time init_time / 999."""
    generator_shift: Positive = 1.0
    """flow: moves the generator's times towards noise; 1: evenly apart, as published; SD3: 3."""
    step_noise: Literal["fresh", "fixed", "ddim"] = "fresh"
    """flow: what the generator's evaluations after the first read: fresh noise, the fixed noise of
    the first, or (ddim) the noise that the evaluation before them left.
    """
    teacher_shift: Positive = 3.0
    """flow: shift of the teacher's own sampler; 3 for SD3 and SANA."""


DATA_SETS = Literal[
    "digits", "emoji", "prompts", "prepared",
    "cifar10", "imagenet-64", "ffhq-64", "afhqv2-64", "imagenet-512",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data set: labels or prompts, and real images for adversarial runs."""

    name: DATA_SETS = "digits"
    """digits (scikit-learn's) and emoji (16x16, with captions) ship; prompts is a text file, a
    prompt a line, or a prepared set of them; prepared is any prepared set; the others give labels
    to data-free runs, or are prepared sets of that shape.
    """
    source: Text = ""
    """Where the set lies: a text file, or what sid-ray data prepare has made (a path or
    s3://BUCKET/PREFIX). It may move between two starts of a run; its samples must be the same.
    """
    window: Count = 4
    """Row groups of a prepared set whose samples are shuffled together."""
    xflip: bool = False
    """Twice as many images: each one mirrored too. For prepared sets of images."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimisation."""

    images: Count = 100_000_000
    """Length of the run in images. May be raised later: the run goes on."""
    batch_size: Annotated[int, Interval(ge=1, le=10_000_000)] = 256
    """Images an iteration, over all workers."""
    group_size: Count = 16
    """Images a logical group (published: batch-gpu). Workers take whole groups."""
    fake_score_lr: Positive = 1e-5
    """Adam's learning rate of the fake score."""
    generator_lr: Positive = 1e-5
    """Adam's learning rate of the generator."""
    fake_score_beta1: Share = 0.0
    """Adam's beta1 of the fake score."""
    generator_beta1: Share = 0.0
    """Adam's beta1 of the generator."""
    beta2: Share = 0.999
    """Adam's beta2, both networks."""
    epsilon: Positive = 1e-8
    """Adam's epsilon, both networks."""
    optimizer: Literal["adam", "adam8bit"] = "adam"
    """adam8bit: Adam's moments in 8 bits a weight instead of 32, by bitsandbytes; tensors of fewer
    than 4096 weights stay in 32. At ZeRO stage 0 alone, or on one worker.
    """
    weights: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: fake score and generator are computed with in bfloat16, and Adam steps float32
    weights all the same, of which checkpoints are. For training.precision bfloat16; on several
    workers at ZeRO stage 2 or 3. Less memory and half the bytes sent at stage 3.
    """
    ema_half_life: CountOrNone = 500_000
    """Half-life of the generator's weight average, in images; 0 for none."""
    ema_rampup: NotNegative = 0.05
    """The half-life is at most this share of the images seen."""
    clip_value: NotNegative = 0.0
    """The fake score's gradients are clipped to +- this, element by element; 0 for not
    (published: 1 for SiDA on EDM).
    """
    normalize_weights: bool = True
    """EDM2's forced weight normalisation after each update; published without it for SiDA and SiD2A
    on S. With compat official and no discriminator it is on whatever stands here.
    """
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of the networks' bodies, and on GPUs of what is beside them: the generator that is
    scored, Stable Diffusion's text encoder and VAE. Weights, optimizer and losses stay float32. As
    published, no loss is scaled: an update that is not finite is skipped.
    """
    seed: Seed = 0
    """Seed of every random number of the run."""


Switch = Annotated[bool | Auto, OR_AUTO]
Threads = Annotated[int, Interval(ge=1, le=4_096)]
Workers = Annotated[int, Interval(ge=1, le=1_000_000)]


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """Where the run computes. Changes speed, never numbers. What is auto is chosen at each start
    for the machines that are there, and said in one line; sid-ray plan says it before. A switch
    alone is True, --resources.no-SWITCH is False.
    """

    num_workers: Annotated[Workers | Auto, OR_AUTO] = AUTO
    """Ray Train workers; at most batch_size / group_size. auto: one on each GPU, else on each CPU;
    on a cluster that was joined, all that come.
    """
    min_workers: Annotated[Count | Auto, OR_AUTO] = AUTO
    """On a cluster that was joined, the run goes on with as few workers when nodes go, and grows
    back to num_workers when they come. auto: the fewest on which it fits. On a Ray of its own it
    always has num_workers.
    """
    scaling: Literal["sid_ray", "ray"] = "sid_ray"
    """sid_ray: no step is lost when nodes come or go by plan; ray: Ray Train's own elasticity,
    which starts again from the last checkpoint.
    """
    resize_check_s: Annotated[float, Ge(1)] = 10.0
    """Seconds between two looks for nodes that have come."""
    use_gpu: Switch = AUTO
    """One GPU a worker instead of one CPU. auto: where there are GPUs."""
    zero_stage: Annotated[Literal[0, 1, 2, 3] | Auto, OR_AUTO] = AUTO
    """DeepSpeed ZeRO stage of fake score and generator: what is shared out over workers. 1 Adam's
    state and the master weights, 2 gradients too, 3 the networks themselves. auto: the one that
    costs least in passes and in what is sent, of those that fit; 1 on CPUs.
    """
    fake_score_zero_stage: Literal[-1, 0, 1, 2, 3] = -1
    """Stage of the fake score alone; -1 for zero_stage."""
    generator_zero_stage: Literal[-1, 0, 1, 2, 3] = -1
    """Stage of the generator alone; -1 for zero_stage."""
    teacher_zero_stage: Annotated[Literal[0, 3] | Auto, OR_AUTO] = AUTO
    """0: the frozen teacher is whole on each worker; 3: each keeps a part of it. auto: as
    zero_stage.
    """
    offload_optimizer: Switch = AUTO
    """Keep Adam's state, the master weights and accumulated gradients in CPU memory and step there,
    ZeRO stages 1 to 3. Saves 12 bytes a parameter over the workers' GPUs, 16 with a first moment
    (beta1 above 0); a step takes longer. auto: where nothing else fits.
    """
    activation_checkpointing: Switch = AUTO
    """Compute the networks' blocks again in the backward pass instead of keeping what is inside
    them: about a third more arithmetic for far less memory. auto: where too few images fit without.
    """
    overlap_comm: Switch = AUTO
    """ZeRO stages 1 to 3: sum gradients over workers while the backward pass goes on. Brings
    nothing on CPUs. With offload_optimizer the host waits for the device once a pass, at stages 1
    and 2. auto: off unless sid-ray bench has measured it faster.
    """
    compile: Literal["auto", "off", "default", "cudagraphs"] = AUTO
    """torch.compile of the networks: default compiles their blocks, cudagraphs whole networks into
    CUDA graphs. Compiled code stays on each node's disk for later starts. Rounding differs; not
    with ZeRO stage 3. auto: off unless sid-ray bench has measured it faster.
    """
    micro_batch: Annotated[CountOrNone | Auto, OR_AUTO] = AUTO
    """Images in one forward pass of a worker; a multiple or divisor of group_size, 0 for
    group_size. auto: as many whole groups as fit into a GPU's memory; up to 32 images on a CPU.
    """
    threads: Annotated[Threads | Auto, OR_AUTO] = AUTO
    """CPU threads a worker. auto: 1; where the optimizer is offloaded, and steps on CPUs, the
    node's CPUs over its workers.
    """
    memory_format: Literal["auto", "channels_last", "contiguous"] = AUTO
    """Order in memory of images within EDM and EDM2 networks: which kernels a convolution takes.
    Changes rounding only. On GPUs it is without effect on EDM networks, whose normalisation returns
    contiguous images there. auto: channels_last, contiguous for EDM on GPUs, unless sid-ray bench
    has measured the other faster.
    """
    attention: Literal["auto", "sdpa", "xformers"] = AUTO
    """Attention kernels of all networks: torch's own, or xformers on NVIDIA GPUs. auto: sdpa unless
    sid-ray bench has measured the other faster.
    """
    deterministic: bool = False
    """GPUs: kernels that give the same bits each time on the same kind of GPU, slower; changes
    rounding only. CPUs always do.
    """
    data_cache_gib: Positive = 4.0
    """Memory of a worker for what it has read of a prepared set, and reads ahead."""
    max_failures: CountOrNone = 3
    """Worker failures in a row, without a new checkpoint between, after which the run gives up."""

    def stage_of(self, role: str) -> int | Auto:
        """ZeRO stage of "fake_score" or "generator"."""
        own: int = getattr(self, f"{role}_zero_stage")
        return self.zero_stage if own < 0 else own


OPEN_SWITCHES = tuple(each.name for each in fields(ResourcesConfig) if each.type == "Switch")
"""Those that are on, off or auto."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Scores while training, by an actor of its own. Never changes the training."""

    metrics: Text = "fd"
    """What is measured, a comma between: fd (Frechet distance), kid (kernel distance), is
    (Inception Score), pr (precision and recall), clip (fit of image and prompt), pickscore, hpsv2
    (preference of people), cmmd (kernel distance of CLIP embeddings), or one of an installed
    package. The best weights are kept by the first.
    """
    feature_space: Text = "digits-cnn"
    """Network whose features are compared: digits-cnn, emoji-cnn, lite0, lite0-320, inception (then
    the Frechet distance is the FID) or dinov2; empty for no scores.
    """
    feature_weights: Text = ""
    """inception: NVIDIA's inception-2015-12-05.pt, with #sha256=HEX behind it; dinov2: a folder in
    Transformers' layout.
    """
    clip_weights: Text = ""
    """clip: a CLIP network in Transformers' layout, a folder or hf://OWNER/REPO."""
    metric_weights: Text = ""
    """Networks of other metrics, as METRIC=PLACE with a comma between: pickscore, hpsv2 and cmmd
    read CLIP networks in Transformers' layout, folders or hf://OWNER/REPO.
    """
    reference: Text = ""
    """Real images to compare with: a prepared data set, or statistics (NVIDIA's .npz or .pkl; for
    fd alone). Empty for the run's own images; digits-cnn and emoji-cnn know their data sets.
    """
    vae: Text = ""
    """Diffusers folder whose vae turns latents into images; empty for teacher.vae, or the teacher's
    own folder.
    """
    teacher_steps: Annotated[int, Interval(ge=1, le=10_000)] = 18
    """Steps of the teacher in the final report: Heun for EDM and EDM2 (two evaluations a step, one
    in the last), DDIM for Stable Diffusion.
    """
    teacher_guidance: float = 1.0
    """Guidance scale of the teacher in the final report, where it reads text."""
    every: CountOrNone = 1_000_000
    """Images between two evaluations of the averaged generator; 0 for none."""
    num_images: Annotated[int, Interval(ge=65, le=MOST)] = 2048
    """Generated images an evaluation: published FIDs are of 50,000."""
    batch_size: Annotated[int, Interval(ge=1, le=4_096)] = 64
    """Images made at once by an evaluation."""
    resources: Text = ""
    """Ray resources that an evaluation while training takes, like GPU=1 or CPU=4,evaluator=1 (a
    resource of one's own keeps it on nodes that offer it). Empty: on the driver's machine, beside.
    """
    keep_best: bool = True
    """Keep the averaged generator with the best score so far in the run's folder, as best."""
    final_report: bool = True
    """At the end, measure teacher and generator side by side and draw the contact sheet."""


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """When a run is no longer worth going on; judged at each progress report, 0 turns a rule off.

    Beyond a threshold the run goes back to its last good checkpoint once, then stops and says why.
    """

    reports: Count = 3
    """Reports in a row that must be beyond a threshold of losses, samples or discriminator."""
    skipped_share: NotNegative = 0.5
    """Share of updates skipped because they were not finite. Half: one of the two networks does not
    learn any more.
    """
    nonfinite_share: NotNegative = 0.5
    """Share of samples whose image or score is not finite."""
    nonfinite_metrics: bool = True
    """Stop at a loss or another measured number that is not finite: at once, or where updates were
    skipped for it, after several reports in a row.
    """
    loss_growth: NotNegative = 100.0
    """Size of a loss, in multiples of the median of its own size in the last 100 reports."""
    loss_warning: NotNegative = 10.0
    """The same, for a warning that does not stop the run."""
    saturation: NotNegative = 0.98
    """Share of the values of generated pictures at or beyond -1 and 1."""
    sample_std_low: NotNegative = 0.02
    """Standard deviation over the values of a generated image below which images are flat."""
    sample_spread_low: NotNegative = 0.01
    """Standard deviation between generated images below which they are all the same."""
    discriminator_accuracy: NotNegative = 0.995
    """sida: share of logits on the right side, of real and of generated images, from which on a
    warning says that the discriminator has won. It does not stop the run.
    """


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """The server behind s3:// addresses, for every process of the run. Credentials never stand
    here: they come from each node's environment, ~/.aws or role.
    """

    endpoint_url: Text = ""
    """http(s)://HOST:PORT of an S3-compatible server; empty for AWS_ENDPOINT_URL, else Amazon's."""
    region: Text = ""
    """Region of the buckets; empty for AWS_REGION."""
    lease_s: Annotated[float, Ge(10)] = 90.0
    """Seconds for which a driver keeps a run without being heard of in the run's folder. 20 s
    before they are over (a third of them, if that is less) it stops; after them another driver may
    take the run."""


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """What is written, and how often."""

    folder: Text = "runs"
    """Folder of all runs, a path or s3://BUCKET/PREFIX; a run is a folder in it."""
    run: Text = ""
    """Name of the run; empty for the recipe's name. The same name resumes."""
    checkpoint_every: Count = 1_000_000
    """Images between two checkpoints."""
    keep_checkpoints: Count = 2
    """Newest checkpoints to keep."""
    local_folder: Text = ""
    """Folder on each node's own disk to which checkpoints are written first, and from which they
    are read again when it is still there; empty for the temporary folder (TMPDIR), or the run's
    own folder where all is one machine.
    """
    report_every: Count = 10_000
    """Images between two progress reports and metrics."""
    tracking_uri: Text = ""
    """MLflow store; empty for MLFLOW_TRACKING_URI, else sqlite in the folder of all runs (in runs
    where that folder is in S3).
    """
    experiment: Text = "sid_ray"
    """MLflow experiment."""
    log_model: bool = True
    """At the end, put the generator and its model card among the MLflow run's artifacts."""
    register_model: Text = ""
    """Name of the registered model in MLflow that gets a version of it; empty for none."""
