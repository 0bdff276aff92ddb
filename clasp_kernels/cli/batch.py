"""``clasp batch``: check what is asked, claim the folder, have an engine answer, and sum up."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clasp_kernels._run_folder import OtherRun
from clasp_kernels._version import __version__
from clasp_kernels.cli.batch_options import ENGINES, ModelSettings
from clasp_kernels.cli.errors import CommandError, UsageError, in_one_line, refusing_as

if TYPE_CHECKING:
    from clasp_kernels.batch import Finished, Shard, Source
    from clasp_kernels.batch.output import OutputFolder

# Of the first rows, so many are tried on the model without weights.
_REHEARSED = 16
_READ = 1 << 20
# Of a model's folder, these decide what it answers.
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".json", ".jinja", ".txt", ".model")


@dataclass(frozen=True)
class Batch:
    """A checked run."""

    engine: Any
    """The module of the engine."""
    source: Source
    shards: tuple[Shard, ...]
    settings: ModelSettings
    device: str
    batch_size: int
    manifest: dict[str, Any]


def open_input(name: str, question: str | None, question_column: str, image_column: str) -> Source:
    """Open the input. Raises a UsageError that says what is wrong with it."""
    from clasp_kernels.batch import open_source
    from clasp_kernels.batch.source import BadInput

    if not name:
        raise UsageError("IN must name a file or a folder, got an empty argument")
    try:
        return open_source(
            name, question=question, question_column=question_column, image_column=image_column
        )
    except BadInput as error:
        raise UsageError(f"IN: {error}") from None
    except FileNotFoundError:
        raise UsageError(f"IN: there is no file or folder {name}") from None
    except OSError as error:
        raise CommandError(f"IN: {name} cannot be read: {in_one_line(error)}") from None


def checked(
    source: Source,
    settings: ModelSettings,
    *,
    question: str | None,
    question_column: str,
    image_column: str,
    engine: str,
    device: str,
    batch_size: int,
    shard_size: int,
) -> Batch:
    """Try everything on the model without its weights.

    Raises a CommandError if model, processor, profile, rule or schedule do not fit.
    """
    import torch
    import transformers

    from clasp_kernels.batch import StopsJob
    from clasp_kernels.cli.batch_model import ModelAnswerer, applied
    from clasp_kernels.cli.loading import load_skeleton, pick_device

    module = importlib.import_module(ENGINES[engine])
    loaded = load_skeleton(settings.model)
    handle = applied(loaded, settings)
    shards = tuple(source.shards(shard_size))
    _rehearse(ModelAnswerer(loaded, handle, settings.max_new_tokens), source, shards[0])
    if engine == "ray":
        if device not in ("auto", "cpu", "cuda"):
            raise UsageError(
                f"--device must be auto, cpu or cuda with --engine ray, which gives each actor a "
                f"GPU of its own, got {device!r}"
            )
    elif device != "auto":
        pick_device(device)
    try:
        kind = module.device_type(device)
    except StopsJob as error:
        raise CommandError(str(error)) from None
    config = loaded.model.config
    revision = _revision(loaded.model.name_or_path, config)
    manifest = {
        "package version": __version__,
        "transformers version": transformers.__version__,
        "torch version": torch.__version__,
        "model": loaded.name,
        "revision": revision,
        "device": kind,
        "dtype": str(torch.float32 if kind == "cpu" else config.dtype),
        "profile": handle.profile.to_dict(),
        "rule": settings.rule,
        "budget": settings.budget,
        "schedule": None if settings.schedule is None else str(settings.schedule),
        "longest answer": settings.max_new_tokens,
        "question": question,
        "question column": None if question is not None else question_column,
        "image column": image_column,
        "input": source.fingerprint,
        "rows": source.rows,
        "shard size": shard_size,
    }
    if not Path(loaded.model.name_or_path).is_dir():
        settings = replace(settings, revision=revision)
    return Batch(module, source, shards, settings, device, batch_size, manifest)


def _rehearse(answerer: Any, source: Source, shard: Shard) -> None:
    """Prepare one of the first rows, so that a processor that fits no row is named at once."""
    refused: CommandError | None = None
    for row in islice(_read(source, shard), _REHEARSED):
        if row.error is not None:
            continue
        try:
            answerer.prepare(row)
            return
        except CommandError as error:
            if not str(error).startswith(("IMAGE: ", "QUESTION ")):  # not this row's own fault
                refused = refused or error
    if refused is not None:
        raise refused


def _read(source: Source, shard: Shard) -> list[Any]:
    try:
        return source.read(shard)
    except OSError as error:
        raise CommandError(f"IN cannot be read: {in_one_line(error)}") from None


def _revision(source: str, config: Any) -> str | None:
    """Return the commit of a model on the hub, or a hash of the files of a folder."""
    folder = Path(source)
    if not folder.is_dir():
        return getattr(config, "_commit_hash", None)
    digest = sha256()
    with refusing_as(f"--model {source} cannot be read"):
        for path in sorted(folder.iterdir()):
            if path.suffix not in _SUFFIXES or not path.is_file():
                continue
            digest.update(path.name.encode() + b"\0")
            with path.open("rb") as file:
                while block := file.read(_READ):
                    digest.update(block)
    return digest.hexdigest()


@contextmanager
def opened_output(batch: Batch, folder: Path) -> Iterator[OutputFolder]:
    """Open the folder of the results. Raises a CommandError if it has those of another run."""
    from clasp_kernels.batch.output import OutputFolder

    try:
        output = OutputFolder(folder, batch.manifest)
    except OtherRun as error:
        raise CommandError(
            f"OUT: {folder} has the results of another run: {error}. Choose another OUT, or delete "
            f"that folder"
        ) from None
    except (ValueError, OSError) as error:
        raise CommandError(f"OUT: {folder} cannot be used: {in_one_line(error)}") from None
    with output:
        yield output


class Stopped(Exception):
    """The user stopped the command. The message says what is kept."""


def answer(
    batch: Batch,
    output: OutputFolder,
    workers: tuple[int, int] | None,
    on_done: Callable[[Finished, int, int], None],
) -> None:
    """Answer the shards that are not there.

    ``on_done`` is told what became of the rows that were answered, how many rows are done now, and
    how many there are.

    Raises Stopped after Ctrl-C, and a CommandError if the job cannot go on.
    """
    from clasp_kernels.batch import CannotWrite, Finished, Job, StopsJob

    left = tuple(shard for shard in batch.shards if not output.is_done(shard))
    job = Job(
        batch.source,
        left,
        output.folder,
        partial(_load, settings=batch.settings),
        batch.device,
        batch.batch_size,
    )
    before = batch.source.rows - job.rows
    total = Finished(0, 0, 0, 0)
    on_done(total, before, batch.source.rows)
    try:
        if left:
            # Closed before anything else is done: then no process is left.
            with closing(batch.engine.run(job, workers)) as results:
                for finished in results:
                    total = total + finished
                    on_done(total, before + total.rows, batch.source.rows)
    except (StopsJob, CannotWrite) as error:
        raise CommandError(f"{error}. {_kept(batch, output)}") from None
    except KeyboardInterrupt:
        raise Stopped(f"Stopped. {_kept(batch, output)}") from None
    finally:
        output.tidy()


def _load(device: str, *, settings: ModelSettings) -> Any:
    from clasp_kernels.cli.batch_model import load_answerer

    return load_answerer(settings, device)


def _kept(batch: Batch, output: OutputFolder) -> str:
    done = sum(shard.rows for shard in batch.shards if output.is_done(shard))
    return (
        f"{done} of {batch.source.rows} rows are done and kept in {output.folder}; the same "
        f"command goes on from there"
    )


def summary(output: OutputFolder) -> list[str]:
    """Return what is in the folder, in sentences."""
    found = output.summary()
    saved = found.tokens_before - found.tokens_after
    share = f" ({100 * saved / found.tokens_before:.1f} %)" if found.tokens_before else ""
    lines = [
        f"{found.rows} rows: {found.rows - found.errors} answers, {found.errors} errors.",
        f"Visual tokens: {found.tokens_before} before, {found.tokens_after} after; {saved} "
        f"saved{share}.",
    ]
    if found.errors:
        lines.append("The column error says why a row has no answer.")
    lines.append(f"Results: {output.folder}")
    return lines
