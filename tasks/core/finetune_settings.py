"""The settings of fine-tuning, in a module of their own: training needs them without pydantic-settings."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tasks.core.hidden_addresses import hide

Address = Annotated[str, AfterValidator(hide)]
Share = Annotated[float, Field(ge=0, le=1)]


class SettingsGroup(BaseModel):
    """A named group of settings: unknown keys are rejected, and values are fixed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class FinetuneSettings(SettingsGroup):
    """The training recipe."""

    encoder: Address = "packaged"
    """Folder or hub id of a pretrained encoder, or "packaged" for the one that is installed with the product."""
    allow_new_weights: bool = False
    """Train an encoder of which less than 90% comes from its files; the rest starts from random weights."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 4
    """Passes over the training sentences."""
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 32
    """Sentences per optimiser step."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-5
    """Peak learning rate of AdamW."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the learning rate rises linearly from 0 to its peak."""
    weight_decay: Share = 0.01
    """Decoupled weight decay of matrices; biases and normalisation weights do not decay."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of AdamW's mean of the gradients."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of AdamW's mean of the squared gradients."""
    adam_eps: Annotated[float, Field(ge=1e-12, le=1)] = 1e-8
    """Added to the root of that mean before dividing by it."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate of each layer as a multiple of the one above it; 1 for the same rate everywhere."""
    max_length: Annotated[int, Field(ge=4, le=8192)] = 128
    """Longest input in tokens, the special ones included, at most the encoder's positions; longer sentences are cut."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """L2 norm to which larger gradients are clipped; 0 for no clipping."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each label that is spread over both classes."""
    r_drop: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Weight of the R-Drop loss (divergence of two dropout passes); 0 for one pass, at half the time."""
    sift: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Weight of the SiFT loss (divergence of the answer under adversarial noise on the embeddings); 0 for none."""
    corruptions: Annotated[int, Field(ge=0, le=100)] = 0
    """Corrupted copies per acceptable sentence for a first stage that learns to detect them; 0 for none."""
    text_corruptions: Annotated[int, Field(ge=0, le=100)] = 1
    """Corrupted copies per sentence of data.text. With data.text set, this alone turns the corruption stage on."""
    token_loss: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Weight of that stage's second loss: which tokens were moved, changed or follow a dropped one; 0 for none."""
    teacher: Address = ""
    """Model whose answers training learns, also to data.text: bundle's folder, VERSION, models:/... or hf:ORG/NAME."""
    teacher_share: Share = 0.7
    """Share of the teacher's answer in what is learned of a sentence with a label; without a label it is all."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Early stopping: epochs without a better validation MCC after which training ends; 0 for never."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 2018
    """Seed of the new head, dropout, batch order and data split."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """Models trained from one start with consecutive seeds; of several, the average of their weights is kept."""
    processes: Annotated[int, Field(ge=1, le=64)] = 1
    """Training processes on this host, one per GPU: data-parallel for one seed, seed-parallel for several."""
    ray: str = ""
    """Ray cluster whose tasks train several seeds, one each: local, auto or HOST:PORT; empty for this host."""
    restarts: Annotated[int, Field(ge=0, le=10)] = 2
    """Other seeds to try if a run collapsed: it predicts one class only, or its loss is NaN."""
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 60.0
    """Least seconds between two checkpoints, which are written after epochs."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of training; auto is bf16 on a GPU and on a CPU with bf16 instructions, else fp32. Weights are fp32."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where training and measurement run; auto uses a GPU if one works."""
