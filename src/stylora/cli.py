"""The command line: parse, call, print. Imports torch only inside the commands that need it, so `--help` answers at once.

A `UserError` becomes one sentence on stderr and exit code 2; a training that had to stop, exit code 1.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from stylora.errors import UserError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="LoRA fine-tuning for style: novels in, a style adapter out.",
)  # fmt: skip

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; progress goes to stderr.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, as in train.learning_rate=2e-4 data.window=512.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace what lies in the output folder.")]
OpenAnyway = Annotated[bool, typer.Option("--force", help="Open also what was changed after training; it is said.")]


def main() -> None:
    """Entry point of `stylora` and `python -m stylora`."""
    for stream in (sys.stdout, sys.stderr):  # Windows consoles may be set to a code page that knows no Chinese
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    warnings.filterwarnings("ignore", category=FutureWarning)  # libraries to each other; nothing a user can mend
    with user_errors():
        app()


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn what the user can mend into one sentence and exit code 2."""
    try:
        yield
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        reason = os.strerror(error.errno).lower()
        _fail(f"{error.filename or 'output'}: got {reason}, expected leave and room to read and write there; choose another place")


def _fail(message: str) -> None:
    from stylora.model.processes import rank

    if rank():  # what all processes meet the first one tells, and whoever started them ends the others; what only this one met, it tells
        time.sleep(2)
    Console(stderr=True, soft_wrap=True).print(f"[red]error:[/red] {_escaped(message)}", highlight=False)
    sys.exit(2)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _console(as_json: bool = False) -> Console:
    """Where progress goes: stdout, or stderr when stdout carries JSON. Lines in a file or a pipe are not folded."""
    console = Console(stderr=as_json)
    console.soft_wrap = not console.is_terminal
    return console


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def _version(asked: bool) -> None:
    if asked:
        from stylora import __version__

        print(f"stylora {__version__}")
        raise typer.Exit


@app.callback()
def root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    pass


@app.command(context_settings={"ignore_unknown_options": True})  # those of an older trainer, which are read as the recipe is
def train(
    recipe: Annotated[str | None, typer.Argument(help="A recipe in YAML, or instead older flags: --base_model, --data_path ...")] = None,
    overrides: Overrides = None,
    force: Force = False,
    resume: Annotated[bool, typer.Option("--resume", help="Fail where there is no unfinished run to go on with.")] = False,
    extend: Annotated[float, typer.Option(min=0, help="Go on with a run for so many epochs more than its recipe has.")] = 0,
    nproc: Annotated[int, typer.Option(min=1, help="Processes of this machine that train together, one for each GPU.")] = 1,
    stage: Annotated[str | None, typer.Option("--stage", help="Train this stage alone; those it begins with must be done.")] = None,
    start: Annotated[str | None, typer.Option("--from", help="Train this stage and those after it.")] = None,
) -> None:
    """Train what a recipe describes, stage by stage: what is done is left alone, an unfinished stage goes on where it stopped."""
    from stylora.run.start import start_training

    raise typer.Exit(start_training(
        [*([recipe] if recipe else []), *(overrides or [])], console=_console(), force=force, resume=resume, extend=extend, nproc=nproc,
        only=stage, start=start,
    ))  # fmt: skip


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option("--out", help="Where the run is kept; by default a temporary folder.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every system: style, alignment, labels, a stack; some minutes more.")] = False,
    force: Force = False,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Watch a small bundled model learn a style from example novels: a few minutes, no GPU, no downloads."""
    if everything:
        from stylora.run.demo_all import demo_all as run
    else:
        from stylora.run.demo import demo as run

    result = run(out, overrides or [], console=_console(as_json), force=force)
    if as_json:
        _print_json(result)


@app.command()
def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, stage, stack.json, PEFT folder, model folder, hub id, or `tiny`.")],
    prompt: Annotated[list[str], typer.Option("--prompt", "-p", help="Text to continue; may be given several times.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest continuation, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token every time.")] = 0.8,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Keep the likeliest tokens up to this share of probability.")] = 0.95,
    top_k: Annotated[int, typer.Option(min=0, help="Keep so many tokens; 0 keeps all.")] = 0,
    repetition_penalty: Annotated[float, typer.Option(min=0, help="Above 1 makes what was said less likely.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Stop at this text; may be given several times.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the prompt as a user's turn by the chat template.")] = False,
    base: Annotated[str | None, typer.Option(help="Use this base instead of the one named by the adapter.")] = None,
    without_adapter: Annotated[bool, typer.Option("--without-adapter", help="Switch the adapter off: the base alone.")] = False,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run Python that comes with the base.")] = False,
    force: OpenAnyway = False,
) -> None:
    """Continue text with a model, as it is written."""
    from stylora.run.generate import stream_prompts

    sampling = _sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, repetition_penalty=repetition_penalty,
        seed=seed, stop=stop or [],
    )  # fmt: skip
    stream_prompts(model, prompt, sampling, chat=chat, base=base, without_adapter=without_adapter, trust_remote_code=trust_remote_code,
                   force=force)  # fmt: skip


@app.command()
def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As for `generate`; its base must have a chat template.")],
    system: Annotated[str | None, typer.Option(help='Another system prompt than that of training; "" for none.')] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token every time.")] = 0.8,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Keep the likeliest tokens up to this share of probability.")] = 0.95,
    top_k: Annotated[int, typer.Option(min=0, help="Keep so many tokens; 0 keeps all.")] = 0,
    repetition_penalty: Annotated[float, typer.Option(min=0, help="Above 1 makes what was said less likely.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling; every answer draws anew from it.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Stop at this text; may be given several times.")] = None,
    base: Annotated[str | None, typer.Option(help="Use this base instead of the one named by the adapter.")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run Python that comes with the base.")] = False,
    force: OpenAnyway = False,
) -> None:
    """Talk with a model; its adapters can be weighed, swapped and switched off on the way."""
    from stylora.run.chat_session import chat as run

    sampling = _sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, repetition_penalty=repetition_penalty,
        seed=seed, stop=stop or [],
    )  # fmt: skip
    raise typer.Exit(run(model, sampling, system=system, base=base, trust_remote_code=trust_remote_code, force=force))


def _sampling(**values: Any) -> Any:
    """Options as `Sampling`. Raises UserError that names the option."""
    from pydantic import ValidationError

    from stylora.generate.settings import Sampling

    try:
        return Sampling(**values)
    except ValidationError as error:
        first = error.errors()[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        expected = first["msg"].removeprefix("Value error, ").replace("Input should", "a value that should")
        raise UserError(flag, got=repr(first["input"]), expected=expected) from error


@app.command()
def evaluate(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="As for `generate`; the base of each is measured too.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="A recipe, for its held-out text; by default the first MODEL's that has one.")] = None,
    stage: Annotated[str | None, typer.Option(help="The stage of that recipe; the first by default.")] = None,
    held_out: Annotated[Path | None, typer.Option(help="Conversations to measure on instead of those the recipe holds out.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Prompts to continue, one a line; by default 32 neutral openings.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest continuation, in tokens; 100 by default.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Continuations of each prompt.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token every time.")] = 0.8,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Keep the likeliest tokens up to this share of probability.")] = 0.95,
    top_k: Annotated[int, typer.Option(min=0, help="Keep so many tokens; 0 keeps all.")] = 0,
    repetition_penalty: Annotated[float, typer.Option(min=0, help="Above 1 makes what was said less likely.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws, the voice and the intervals.")] = 0,
    checkpoints: Annotated[str | None, typer.Option(help="Also these checkpoints of each stage: `all`, or steps as in 100,200.")] = None,
    weight: Annotated[str | None, typer.Option(help="Also with the adapter's update times these, as in 0.3,0.5.")] = None,
    three_way: Annotated[bool, typer.Option("--three-way", help="Compare a stack of adapters with its parts.")] = False,
    base_model: Annotated[str | None, typer.Option("--base_model", "--base-model", help="The base alone, or that of the next.")] = None,
    lora_model: Annotated[str | None, typer.Option("--lora_model", "--lora-model", help="Base, and with this adapter.")] = None,
    style_adapter: Annotated[
        str | None, typer.Option("--style_adapter", "--style-adapter", help="Three-way: the folder of the adapter below.")
    ] = None,
    instruct_adapter: Annotated[
        str | None, typer.Option("--instruct_adapter", "--instruct-adapter", help="Three-way: the folder of the adapter on it.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Use this base instead of the one named by adapter and recipe.")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run Python that comes with the base.")] = False,
    force: OpenAnyway = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write the figures to this file, as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure style, forgetting, fluency and copying of models beside their base; of tasks, their answers."""
    from stylora.evaluate.prompts import PROMPTS
    from stylora.run import evaluation_options as given
    from stylora.run import show_evaluation, show_three_way
    from stylora.run.evaluate import evaluate as run
    from stylora.run.folder import write_json

    sampling = _sampling(
        max_new_tokens=max_new_tokens or 100, temperature=temperature, top_p=top_p, top_k=top_k, repetition_penalty=repetition_penalty,
        seed=seed,
    )  # fmt: skip
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise UserError("--out", got=str(out), expected="a file in a folder that is there")
    by_parts = three_way or any(each is not None for each in (base_model, lora_model, style_adapter, instruct_adapter))
    if by_parts:
        from stylora.run import three_way_models as older
        from stylora.run.three_way import three_way as compare_variants

        older.refuse_idle({
            "--prompts": prompts is not None, "--samples": samples != 1, "--checkpoints": checkpoints is not None,
            "--weight": weight is not None,
        })  # fmt: skip
        flags = older.OlderFlags(base=base_model, lora=lora_model, style=style_adapter, instruct=instruct_adapter)
        result = compare_variants(
            older.find_subject(models or [], flags, base=base, force=force), data=data, stage=stage, held_out=held_out, sampling=sampling,
            max_new_tokens=max_new_tokens, seed=seed, console=_console(True), trust_remote_code=trust_remote_code,
        )  # fmt: skip
    elif not models:
        raise UserError("MODEL", got="none", expected="a run, stage, stack.json, PEFT folder, model folder, hub id, or `tiny`")
    else:
        result = run(
            models, data=data, stage=stage, held_out=held_out, prompts=PROMPTS if prompts is None else given.read_prompts(prompts),
            sampling=sampling, samples=samples, seed=seed, weights=(1.0,) if weight is None else given.read_weights(weight),
            checkpoints=None if checkpoints is None else given.read_checkpoints(checkpoints), console=_console(True), base=base,
            trust_remote_code=trust_remote_code, force=force,
        )  # fmt: skip
    if out is not None:
        write_json(out, result)
    if as_json:
        _print_json(result)
    else:
        (show_three_way if by_parts else show_evaluation).show(result, _console())


@app.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As for `generate`: a stage that was trained on conversations.")],
    source: Annotated[Path, typer.Option("--input", help="A table: .csv, .tsv, .jsonl, .json or .parquet.")],
    column: Annotated[str, typer.Option(help="What is asked, cell by cell; in JSON also a dotted path, as in request.text.")],
    output: Annotated[Path, typer.Option(help="The table to write, .csv or .jsonl; what is there is gone on with.")],
    system: Annotated[str | None, typer.Option(help="Another system prompt than that of training.")] = None,
    template: Annotated[str, typer.Option(help="The user's turn, with {text} where the cell goes.")] = "{text}",
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="Confidence below which an answer is not known.")] = None,
    fallback: Annotated[str, typer.Option(help="What is answered then.")] = "unknown",
    no_constrain: Annotated[bool, typer.Option("--no-constrain", help="Let it write what is no label, or no JSON of the schema.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs at once.")] = 32,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows.")] = None,
    base: Annotated[str | None, typer.Option(help="Use this base instead of the one named by the adapter.")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run Python that comes with the base.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output that is there, or an unfinished one of another call.")] = False,
    as_json: AsJson = False,
) -> None:
    """Answer every row of a table. Interrupted and given again, it goes on where it stopped."""
    from stylora.run import predict as page
    from stylora.run.show_prediction import show
    from stylora.train.interruption import Interrupted

    asking = page.Asking(
        base=base, system=system, template=template, threshold=threshold, fallback=fallback, constrain=not no_constrain,
        batch_size=batch_size, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    try:
        told = page.predict(model, source, column, output, asking=asking, console=_console(as_json), limit=limit, force=force)
    except Interrupted as stop:
        _console(True).print("stopped: the same command goes on from here", highlight=False)
        raise typer.Exit(stop.exit_code) from None
    if as_json:
        _print_json(told)
    else:
        show(told, _console())


@app.command()
def branches(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As for `generate`; one that was trained on branches, or any other.")],
    main_text: Annotated[str | None, typer.Option("--main", help="What the branches have in common.")] = None,
    branch: Annotated[list[str] | None, typer.Option("--branch", "-b", help="How a branch begins; may be given several times.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="So many branches without a beginning of their own.")] = None,
    source: Annotated[Path | None, typer.Option("--input", help="Rows of main and branches, .jsonl or .json, instead.")] = None,
    output: Annotated[Path | None, typer.Option(help="The .jsonl to write then; what is there is gone on with.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="--main is a system prompt, each --branch a user's question.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest continuation, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token every time.")] = 0.8,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Keep the likeliest tokens up to this share of probability.")] = 0.95,
    top_k: Annotated[int, typer.Option(min=0, help="Keep so many tokens; 0 keeps all.")] = 0,
    repetition_penalty: Annotated[float, typer.Option(min=0, help="Above 1 makes what was said less likely.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling; every branch draws its own from it.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End a branch at this text; may be given several times.")] = None,
    live: Annotated[int, typer.Option(min=1, help="Branches that advance together.")] = 64,
    trunks: Annotated[int, typer.Option(min=1, help="Rows of --input in one batch.")] = 8,
    plain: Annotated[bool, typer.Option("--plain", help="Write branch by branch, without panes.")] = False,
    base: Annotated[str | None, typer.Option(help="Use this base instead of the one named by the adapter.")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run Python that comes with the base.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output; open what was changed after training, and say so.")] = False,
    as_json: AsJson = False,
) -> None:
    """Continue one text in several ways at once; what they have in common is read once."""
    from stylora.run import branch_command as page
    from stylora.run.branches import Asking
    from stylora.run.show_branches import summary
    from stylora.train.interruption import Interrupted

    sampling = _sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, repetition_penalty=repetition_penalty,
        seed=seed, stop=stop or [],
    )  # fmt: skip
    asking = Asking(sampling=sampling, live=live, trunks=trunks, base=base, trust_remote_code=trust_remote_code, force=force)
    if source is None:
        if output is not None:
            raise UserError("--output", got="that without --input", expected="rows to answer", do="give --input, or leave it out")
        told = page.one_trunk(
            model, main_text, branch or [], count, asking, chat=chat, plain=plain, as_json=as_json, console=_console(as_json)
        )
    else:
        given = {"--main": main_text is not None, "--branch": bool(branch), "--count": count is not None, "--chat": chat}
        try:
            told = page.file_of_rows(model, source, output, asking, _console(as_json), given)
        except Interrupted as stopped:
            _console(True).print("stopped: the same command goes on from here", highlight=False)
            raise typer.Exit(stopped.exit_code) from None
    if as_json:
        _print_json(told)
    else:
        summary(told, _console())


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As for `generate`; with adapters.")],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="A new or empty folder.")],
    kind: Annotated[str, typer.Option("--as", metavar="concat|svd|merged", help="One LoRA, one of a smaller rank, or a whole model.")],
    rank: Annotated[int | None, typer.Option(min=1, help="Of svd.")] = None,
    dtype: Annotated[str | None, typer.Option(metavar="fp32|bf16|fp16", help="Of the numbers; fp32 for LoRA, else the base's.")] = None,
    max_shard_size: Annotated[str | None, typer.Option(help="Of a file of merged weights; 5GB by default.")] = None,
    base: Annotated[str | None, typer.Option(help="Use this base instead of the one named by the adapter.")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run Python that comes with the base.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an export; take what was changed after training, and say so.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a stack for other programs: one LoRA for vLLM, a smaller one, or a whole model; read again and compared first."""
    from stylora.run import export as page
    from stylora.run.show_export import show
    from stylora.train.interruption import Interrupted

    wanted = page.Wanted(kind=kind, rank=rank, dtype=dtype, max_shard_size=max_shard_size)
    try:
        told = page.export(model, to, wanted, console=_console(as_json), base=base, trust_remote_code=trust_remote_code, force=force)
    except Interrupted as stop:
        raise typer.Exit(stop.exit_code) from None
    if as_json:
        _print_json(told)
    else:
        show(told, to, _console())


class _ScanByDefault(TyperGroup):
    """`data PATH...` is `data scan PATH...`; a folder called `mix`, `make`, `pairs` or `branches` is `./mix` and so on."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["scan", *args]
        return super().parse_args(ctx, args)


data = typer.Typer(
    cls=_ScanByDefault, no_args_is_help=True, subcommand_metavar="PATH...|RECIPE|mix|make|pairs|branches", rich_markup_mode="rich",
    help="What reading your text does to it: `data PATH...` scans it, `data mix` writes one mixed JSONL, `data make` a task's rows, "
    "`data pairs` rows that rewrite plain words as a novel has them, `data branches` rows of trunks with branches.",
)  # fmt: skip
app.add_typer(data, name="data")


@data.command("scan")
def data_scan(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT", help="Files and folders, or one recipe; then KEY=VALUE.")],
    base: Annotated[str | None, typer.Option(help="Whose tokenizer counts; by default the recipe's, for paths `tiny`.")] = None,
    show_removed: Annotated[bool, typer.Option("--show-removed", help="Print what cleaning took out, with file and line.")] = False,
    as_json: AsJson = False,
) -> None:
    """Scan text: encodings, cleaning, tokens, split. `data PATH...` is `data scan PATH...`."""
    from stylora.run import data as page

    found = page.scan(page.scan_recipe(inputs, base), console=Console(stderr=True))
    if as_json:
        _print_json(found.as_json())
    else:
        page.show(found, _console(), removed=show_removed)


@data.command("mix")
def data_mix(
    data_dir: Annotated[Path, typer.Option("--data_dir", "--data-dir", help="Novels.")],
    output: Annotated[Path, typer.Option("--output", help="The JSONL to write: rows of text, source and file.")],
    general_file: Annotated[Path | None, typer.Option("--general_file", "--general-file", help="Ordinary text to mix in.")] = None,
    general_ratio: Annotated[float, typer.Option("--general_ratio", "--general-ratio", help="Its share of the characters, below 1.")] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice and the order.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write novels and general text as one shuffled JSONL. Recipes do not need it: they mix by themselves, by tokens."""
    from stylora.run.data import show_mix
    from stylora.samples.jsonl_mix import write_mix

    mix = write_mix(data_dir, general_file, output, general_ratio, seed)
    show_mix(mix, _console(as_json))
    if as_json:
        from dataclasses import asdict

        from stylora.samples.store import report_row

        _print_json({**asdict(mix), "reports": [report_row(report) for report in mix.reports]})


@data.command("make")
def data_make(
    task: Annotated[str, typer.Argument(metavar="unified|columns", help="Names of vehicles and pollutants, or columns of tables.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where train.jsonl, validation.jsonl and two tests are written.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the wordings and the split.")] = 0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write the data of a task: conversations made from lists of names, with a split that no name crosses."""
    from stylora.run.task_data.writing import make, show

    made = make(task, folder, seed=seed, force=force)
    if as_json:
        _print_json(made.as_json())
    else:
        show(made, _console())


@data.command("pairs")
def data_pairs(
    novels: Annotated[list[str], typer.Argument(metavar="NOVEL...", help="Files and folders, as for `data scan`.")],
    model: Annotated[str, typer.Option(help="The MODEL that paraphrases, as for `generate`: one with a chat template.")],
    output: Annotated[Path, typer.Option(help="The .jsonl to write; what is there of it is gone on with.")],
    count: Annotated[int | None, typer.Option(min=1, help="Stop at so many pairs; by default every passage is asked.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask so many passages at most.")] = None,
    min_chars: Annotated[int, typer.Option(min=1, help="Shortest passage, in characters.")] = 40,
    max_chars: Annotated[int, typer.Option(min=1, help="Longest passage, in characters.")] = 120,
    instruction: Annotated[list[str] | None, typer.Option(help="How a row's question begins; may be given several times.")] = None,
    prompt: Annotated[str | None, typer.Option(help="How the model is asked to paraphrase, with {text} where the passage goes.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token every time.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Keep the likeliest tokens up to this share of probability.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of passages, and the draws.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Passages at once.")] = 16,
    base: Annotated[str | None, typer.Option(help="Use this base instead of the one named by the adapter.")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run Python that comes with the base.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output that is there, or an unfinished one of another call.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write rows that teach to rewrite plain words: a model paraphrases passages of a novel, which are the answers."""
    from stylora.run import pairs as page
    from stylora.run.show_pairs import show
    from stylora.train.interruption import Interrupted

    asking = page.Asking(
        shortest=min_chars, longest=max_chars, instructions=tuple(instruction or page.INSTRUCTIONS),
        prompt=page.PROMPT if prompt is None else prompt, sampling=_sampling(temperature=temperature, top_p=top_p, seed=seed),
        base=base, batch_size=batch_size, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    try:
        told = page.make_pairs(model, novels, output, asking=asking, console=_console(as_json), count=count, limit=limit, force=force)
    except Interrupted as stop:
        _console(True).print("stopped: the same command goes on from here", highlight=False)
        raise typer.Exit(stop.exit_code) from None
    if as_json:
        _print_json(told)
    else:
        show(told, _console())


@data.command("branches")
def data_branches(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Files and folders: chat rows, or documents with sections.")],
    output: Annotated[Path, typer.Option(help="The .jsonl to write: rows of main and branches.")],
    min_branches: Annotated[int, typer.Option(min=1, help="Branches of a row at least.")] = 2,
    max_branches: Annotated[int, typer.Option(min=1, help="Of a row made from conversations at most; more become several rows.")] = 8,
    max_chars: Annotated[int, typer.Option(min=1, help="Longest section that may be a branch, in characters.")] = 1500,
    force: Annotated[bool, typer.Option("--force", help="Replace the output that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write rows of trunks with branches, made from conversations that share a context and from documents with sections."""
    from stylora.run import branch_making as page

    told = page.make_branches(inputs, output, least=min_branches, most=max_branches, longest=max_chars, force=force)
    if as_json:
        _print_json(told)
    else:
        page.show(told, _console())


class _ListByDefault(TyperGroup):
    """`runs` is `runs list`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


runs = typer.Typer(
    cls=_ListByDefault, no_args_is_help=False, subcommand_metavar="[list|show|rm]",
    help="The runs there are: how far each came, what it measured, and taking one away. `stylora runs` lists them.",
)  # fmt: skip
app.add_typer(runs, name="runs")

RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run or a stage, by its folder or as `stylora runs` names it.")]


@runs.command("list")
def runs_list(
    folder: Annotated[Path | None, typer.Argument(metavar="FOLDER", help="Where to look; `runs` by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """One line a run, the newest first."""
    from stylora.run.runs import RUNS, list_runs
    from stylora.run.show_runs import show_list

    found = list_runs(folder or RUNS)
    if as_json:
        _print_json({"runs": [run.as_json() for run in found]})
    elif found:
        show_list(found, _console())
    else:
        _console().print(f"no runs in {_escaped(str(folder or RUNS))}", highlight=False)


@runs.command("show")
def runs_show(run: RunName, as_json: AsJson = False) -> None:
    """Recipe, evaluations, checkpoints, and the command that comes next."""
    from stylora.run.runs import find_run
    from stylora.run.show_runs import show

    found = find_run(run)
    if as_json:
        _print_json({"stages": [stage.as_json() for stage in found]})
        return
    for stage in found:
        show(stage, _console())


@runs.command("rm")
def runs_rm(
    run: RunName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove a run or one stage of it, with everything in its folder; asks first."""
    from stylora.run.runs import check_removable, find_run, remove
    from stylora.run.show_runs import size

    found = find_run(run)
    check_removable(found)
    named = ", ".join(str(stage.folder.path) for stage in found)
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("--yes", got="no terminal to ask at", expected="a yes", do=f"give --yes to remove {named}")
        if not typer.confirm(f"remove {named} ({size(sum(stage.bytes for stage in found))})?", err=True):
            raise typer.Exit(1)
    freed = remove(found)
    if as_json:
        _print_json({"removed": [str(stage.folder.path) for stage in found], "bytes": freed})
    else:
        _console().print(f"removed {_escaped(named)}: {size(freed)} freed", highlight=False)


Lang = Annotated[str, typer.Option("--lang", help="Language shown first: `zh`, `en`, or `auto`, which is the system's.")]
Png = Annotated[Path | None, typer.Option("--png", metavar="DIR", help="Write each plot as PNG into this folder, too.")]


@app.command()
def report(
    run: RunName,
    out: Annotated[Path | None, typer.Option("--out", help="The page to write; report.html in the run's folder by default.")] = None,
    lang: Lang = "auto",
    png: Png = None,
    as_json: AsJson = False,
) -> None:
    """Write a run as a page to look at: figures before and after, curves, samples, settings."""
    from stylora.run import report as page

    told = page.report(run, out=out, png=png, language=page.choose_language(lang), console=_console(as_json))
    if as_json:
        _print_json(told)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Runs or stages, as `stylora runs` names them.")],
    out: Annotated[Path | None, typer.Option("--out", help="The page to write; compare.html by default.")] = None,
    lang: Lang = "auto",
    png: Png = None,
    as_json: AsJson = False,
) -> None:
    """Write several runs or stages as one page, beside each other: what each gained, what it forgot, how they differ."""
    from stylora.run import report as page

    told = page.compare(runs, out=out, png=png, language=page.choose_language(lang), console=_console(as_json))
    if as_json:
        _print_json(told)


@app.command()
def sweep(
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML.")],
    grid: Annotated[list[str], typer.Argument(metavar="KEY=A,B...", help="Overrides of several values: train.learning_rate=1e-4,1e-3.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the points, with what would be trained and what is done.")] = False,
    evaluate: Annotated[bool, typer.Option("--evaluate", help="Measure what the model of each point writes, as `evaluate` does.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe at every point of a grid, and show which points no other beats in style and forgetting."""
    from stylora.run import show_sweep
    from stylora.run.sweep import plan_sweep
    from stylora.run.sweep import sweep as run
    from stylora.train.interruption import Interrupted

    try:
        found = plan_sweep(recipe, grid) if dry_run else run(recipe, grid, console=_console(as_json), evaluate=evaluate)
    except Interrupted as stop:
        raise typer.Exit(stop.exit_code) from None
    if as_json:
        _print_json(found)
    else:
        (show_sweep.show_plan if dry_run else show_sweep.show)(found, _console())
    if any(point.get("state") == "stopped" for point in found["points"]):
        raise typer.Exit(1)


@app.command()
def inspect(
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML.")],
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option(min=1, help="How many are shown.")] = 3,
    epoch: Annotated[int, typer.Option(min=0, help="Of which epoch, from 0: masks are fresh in each.")] = 0,
    html: Annotated[Path | None, typer.Option("--html", help="Write them as a page, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the first samples as training reads them: what is trained, masked, context; and how a step is packed."""
    from stylora.recipe.recipe import load_recipe
    from stylora.run import inspect as page

    found = page.inspect(load_recipe(recipe, overrides or []), samples=samples, epoch=epoch, console=Console(stderr=True))
    if html is not None:
        page.write_html(found, html, title=str(recipe))
    if as_json:
        _print_json(found.as_json())
    else:
        page.show(found, _console())


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Your text; `general.txt` or a folder `general` in it is taken as general text.")],
    out: Annotated[Path, typer.Option("--out", help="The recipe to write; an existing file is never replaced.")] = Path("recipe.yaml"),
    base: Annotated[str, typer.Option(help="`tiny`, a folder, or a hub id.")] = "tiny",
) -> None:
    """Write a commented recipe that fits a folder of text."""
    from stylora.run.init import init as run

    run(folder, out, base=base, console=Console(stderr=True))
    name = _escaped(str(out))
    _console().print(f"wrote {name}; next: stylora inspect {name}, then stylora train {name}", highlight=False, soft_wrap=True)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Look at this machine: python, torch, GPUs, packages, caches, the bundled base. Exit code 1 if something fails."""
    from stylora.run import doctor as page

    checks = page.doctor()
    if as_json:
        _print_json(page.as_json(checks))
    else:
        page.show(checks, _console())
    if not page.fit(checks):
        raise typer.Exit(1)
