"""The keys of older recipes: what each is called here, which mean nothing here, what the originals took where nothing was said.

`Keys` is the account of one translation: keys are taken out one by one, and every one of them leaves a sentence. Translates nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from stylora.errors import UserError
from stylora.train.settings import Train

SECTIONS = ("model", "base_model", "lora", "training", "data")
BATCH, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
ADAPTER = {
    "r": ("model.lora_r", "lora.r", "lora.lora_r", "lora_r"),
    "alpha": ("model.lora_alpha", "lora.lora_alpha", "lora.alpha", "lora_alpha"),
    "dropout": ("model.lora_dropout", "lora.lora_dropout", "lora.dropout", "lora_dropout"),
    "targets": ("model.lora_target_modules", "model.target_modules", "lora.target_modules", "lora.lora_target_modules",
                "lora_target_modules", "target_modules"),
}  # fmt: skip
"""adapter's key -> what it was called"""
RENAMED = {
    "warmup_ratio": "warmup_steps", "evaluation_strategy": "eval_strategy", "bf16": "precision", "fp16": "precision",
    "load_best_model_at_end": "metric_for_best_model", "metric_for_best_model": "metric_for_best_model",
}  # fmt: skip
"""what `Train.older_names` translates -> where it ends"""
TRAIN = (*(name for name in Train.model_fields if name not in RENAMED), *RENAMED)
DATA = {"data_dir", "processed_data_file", "max_length", "stride", "min_length", "val_ratio", "train_file", "train_path"} | {
    "val_file", "eval_file", "validation_file", "test_file",
}  # fmt: skip
BARE = {name for names in ADAPTER.values() for name in names if "." not in name} | {*TRAIN, BATCH, ACCUMULATION, "kl_beta"}
IDLE = {
    **dict.fromkeys(
        ["dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "dataloader_persistent_workers",
         "remove_unused_columns", "group_by_length", "dataloader_drop_last"], "samples are laid out before they are asked for"),
    **dict.fromkeys(["per_device_eval_batch_size", "eval_accumulation_steps"], "evaluation computes tokens_per_microbatch at once, too"),
    **dict.fromkeys(
        ["ddp_find_unused_parameters", "ddp_backend", "ddp_timeout", "local_rank", "device_map", "no_cuda", "use_cpu"],
        "devices and processes are found at start"),
    **dict.fromkeys(["kl_schedule", "kl_min", "kl_max", "eos_loss_weight"], "no original ever read it"),
    "max_samples": "all rows are used; data.fraction takes a share of them",
    **dict.fromkeys(["torch_dtype", "tf32", "fp16_opt_level", "half_precision_backend", "fp16_full_eval", "bf16_full_eval"],
                    "precision says it all"),
    **dict.fromkeys(
        ["logging_dir", "logging_strategy", "logging_first_step", "run_name", "overwrite_output_dir", "do_train", "do_eval", "disable_tqdm",
         "push_to_hub", "save_safetensors", "gradient_checkpointing_kwargs", "prediction_loss_only", "resume_from_checkpoint"], ""),
}  # fmt: skip
"""keys without meaning here -> why, where it is worth a word"""
UNSAID = ": not given, the original's default"
ROWS = (".jsonl", ".json", ".parquet")  # in a data_dir: what scripts made of the novels, or other rows


@dataclass(frozen=True, kw_only=True)
class Original:
    """What an original took where its file said nothing. base, output_dir, layout: of the recipe; max_length: tokens of a sample;
    batch, accumulation: of the step; adapter, train: of these sections; stage: its name"""

    base: str
    output_dir: str
    layout: str
    max_length: int
    batch: int
    accumulation: int
    adapter: dict[str, Any]
    train: dict[str, Any]
    stage: str = "style"


STYLE = Original(
    base="Qwen/Qwen3-8B", output_dir="./output/wuxia_model", layout="flat", max_length=1024, batch=4, accumulation=8,
    adapter={"r": 16, "alpha": 32}, train={"num_train_epochs": 3, "learning_rate": 5e-5},
)  # fmt: skip
CHAT = Original(
    base="Qwen/Qwen2.5-3B-Instruct", output_dir="models/unified_lora", layout="final", max_length=256, batch=4, accumulation=4,
    adapter={"r": 16, "alpha": 32, "dropout": 0.05}, train={"num_train_epochs": 5, "learning_rate": 2e-4, "warmup_ratio": 0.1},
)  # fmt: skip


class Keys:
    """The account of one translation.

    given: older key (`model.lora_r`, or `learning_rate` where it stands alone) -> value; what is left at the end nobody knows
    known: every key that was asked for
    recipe, stage: the current form as far as it is written
    lines: what was said so far
    called: place in the current form -> the older key it came from
    """

    def __init__(self, name: str, values: dict[str, Any]) -> None:
        """name: of the file. Raises UserError for a section that is no mapping."""
        self.name = name
        self.given: dict[str, Any] = {}
        self.known: set[str] = set()
        self.recipe: dict[str, Any] = {}
        self.stage: dict[str, dict[str, Any]] = {"data": {}, "adapter": {}, "train": {}}
        self.lines: list[str] = []
        adapter = "lora" if "lora" in values else "model"
        self.called = {"stages[0].train": "training", "stages[0].data": "data", "stages[0].adapter": adapter}
        for key, value in values.items():
            if key not in SECTIONS or key == "base_model":
                self.given[str(key)] = value
            elif isinstance(value, dict | None):
                self.given |= {f"{key}.{inner}": each for inner, each in (value or {}).items()}
            else:
                raise self.wrong(key, value, "a mapping")

    def take(self, *names: str) -> tuple[str, Any] | None:
        """(name, value) of the one key that is given among several names for the same thing."""
        self.known.update(names)
        found = [(name, self.given.pop(name)) for name in names if name in self.given]
        if len({repr(value) for _, value in found}) > 1:
            told = ", ".join(f"{name} {shown(value)}" for name, value in found)
            raise UserError(f"{self.name}: {found[0][0]}", got=told, expected="one of them: they are the same setting")
        return found[0] if found else None

    def put(self, new: str, value: Any, said: str, *, was: str | None = None) -> None:
        """Set a key of the current form: `base`, or `train.learning_rate` of the stage. said: its line; was: the older key"""
        section, _, key = new.rpartition(".")
        (self.stage.setdefault(section, {}) if section else self.recipe)[key] = value
        if said:
            self.lines.append(said)
        if was:
            self.called[f"stages[0].{new}" if section else new] = was

    def move(self, new: str, names: Iterable[str], default: Any = None) -> None:
        """A key that has only another name here; without it the original's default, if there is one."""
        found = self.take(*names)
        if found:
            was, value = found
            self.put(new, value, "" if was == new else f"{was} {shown(value)} -> {new} {shown(value)}", was=was)
        elif default is not None:
            self.put(new, default, f"{new} {shown(default)}{UNSAID}")

    def number(self, names: Iterable[str], default: int | None = None) -> tuple[str | None, int | None]:
        """(key, whole number >= 0) to reckon with; (None, default) where it is not given."""
        found = self.take(*names)
        if found is None:
            return None, default
        was, value = found
        number = as_number(value)
        if number is None or number < 0 or not number.is_integer():
            raise self.wrong(was, value, "a whole number")
        return was, int(number)

    def wrong(self, was: str, value: Any, expected: str, do: str = "") -> UserError:
        """The complaint about an older key."""
        return UserError(f"{self.name}: {was}", got=repr(value), expected=expected, do=do)


def as_number(value: Any) -> float | None:
    """A number, also one in quotes, or without a dot before its exponent (5e-5), which YAML 1.1 reads as text; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def shown(value: Any) -> str:
    """As the recipe would have it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{', '.join(map(shown, value))}]" if isinstance(value, list | tuple) else str(value)
