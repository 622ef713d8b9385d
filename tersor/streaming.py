"""Quantise the weights of a language model from folder to folder, with a block at a time in memory.

In goes what `save_pretrained` of transformers wrote; out comes a folder in the format of compressed-tensors, which
transformers and inference servers load without Tersor. Linear layers of the decoder blocks go on grids; embeddings,
norms and the head stay as they are.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from tersor.errors import InputError
from tersor.inputs import amounts
from tersor.inputs.job import Progress, quiet, torch_threads
from tersor.language import kv_cache as keys_values
from tersor.language import text
from tersor.language.decoder import Decoder
from tersor.language.folder import CONFIG, WEIGHTS, Folder, open_folder
from tersor.language.pack import BITS, Scheme, run_of, settings, specs, tensors
from tersor.language.shard import DTYPES, Spec, Writer, nbytes
from tersor.language.walk import Fitted, Part, Walk, Wanted
from tersor.left_alone import EXCLUDED, LeftAlone
from tersor.records import plain
from tersor.store.files import refuse_folder, staging
from tersor.store.manifest import mark, unmarked
from tersor.techniques.gptq import GPTQ
from tersor.techniques.rounding import Rounding

METHODS: dict[str, type[GPTQ] | type[Rounding]] = {"gptq": GPTQ, "rounding": Rounding}
TOKENS = 2048  # that go through a block together
CHECKS = 8  # one piece in so many judges ridges, and is fitted to by nothing
MEMORY = 2 << 30  # bytes of hidden states: windows beyond are left out


@dataclass(frozen=True)
class QuantizedFolder:
    """A quantized language model, and its next-token loss on held-out text, before and after.

    weights: bits of each matrix. bytes: of all tensors, before and after. windows, tokens: judged; calibrated: windows fitted
    to. losses: nats a token of each judged window, before and after. out: where it was written, where it was. activations: bits
    of what the matrices read, 32 where that stays float. kv_cache: "8", "fp8", or None where it stays float. left_alone: the
    tensors that stay float, and why.
    """

    name: str
    out: str | None
    weights: Mapping[str, int]
    activations: int
    kv_cache: str | None
    groups: int
    bytes: tuple[int, int]
    calibrated: int
    windows: int
    before: float
    after: float
    losses: tuple[tuple[float, ...], tuple[float, ...]] = field(repr=False)
    left_alone: tuple[LeftAlone, ...] = ()

    @property
    def perplexity(self) -> tuple[float, float]:
        """exp of the loss, before and after."""
        return math.exp(min(self.before, 700)), math.exp(min(self.after, 700))

    def to_json(self) -> dict[str, Any]:
        return {**{name: plain(value) for name, value in vars(self).items()}, "perplexity": plain(self.perplexity)}


def quantize_folder(
    path: Path,
    data: Any,
    *,
    weights: int | str = 4,
    activations: int | str = "none",
    kv_cache: int | str = "none",
    groups: int = 0,
    method: str = "gptq",
    polish: int = 0,
    eval_data: Any = None,
    threads: int = 0,
    seed: int = 0,
    exclude: Sequence[str] = (),
    out: str | Path | None = None,
    progress: Progress = quiet,
) -> QuantizedFolder:
    """Quantize the linear layers of the decoder blocks of the model in `path` to 2, 3, 4 or 8 bits, symmetric.

    data, eval_data: token ids (`language.text.bring`), or "itself": text that the model generates, for which it is in memory as
    a whole. activations: 4 to 8 bits for the inputs of the layers, with a scale per token computed at run time, or "none".
    kv_cache: 8 (integers) or "fp8" for the keys and values that attention keeps, or "none". groups: group size, columns that
    share a scale (or the next larger number that divides the columns of a layer), 0 for one scale per output channel. polish:
    optimization steps per block for rounding and scales (`language.polishing`). exclude: linear layers to leave unchanged. out:
    the folder to write, completely or not at all.
    Raises `InputError` for arguments that contradict each other, `ModelError` and `DataError` for what cannot be used, and
    `StorageError` where `out` cannot be written.
    """
    amounts.seed(seed)
    bits, reads = _checked(weights, groups, method), _read(activations)
    if polish < 0:
        raise InputError(f"polish is {polish}; write a number of steps, or 0 for none.")
    cache = keys_values.checked(kv_cache)
    if out is not None:
        refuse_folder(Path(out), unmarked)  # before any work
    with torch_threads(threads):
        progress("reading the model", 0, 0)
        folder = open_folder(path)
        decoder = Decoder(folder)
        wanted = _wanted(folder, decoder, bits, reads, groups, method, exclude)
        progress("reading the text", 0, 0)
        calibration, judged = _texts(folder, data, eval_data, decoder.vocabulary, seed)
        pieces = _pieces(calibration, judged, decoder)
        walk = Walk(decoder, pieces, wanted, method != "rounding", cache, polish)
        schemes = {name: each.scheme for name, each in wanted.items()}
        sizes = _carry_out(folder, decoder, walk, schemes, cache, out, progress)
        progress("evaluating", 0, 0)
        before, after = walk.losses()
    return QuantizedFolder(
        name=path.resolve().name,
        out=None if out is None else str(out),
        weights={name: scheme.bits for name, scheme in schemes.items()},
        activations=reads or 32,
        kv_cache=cache,
        groups=groups,
        bytes=sizes,
        calibrated=sum(len(ids) for ids, part in pieces if part != "judge"),
        windows=len(before),
        before=float(before.mean()),
        after=float(after.mean()),
        losses=(tuple(before.tolist()), tuple(after.tolist())),
        left_alone=_left_alone(folder, decoder, wanted, exclude),
    )


def _left_alone(
    folder: Folder, decoder: Decoder, wanted: Collection[str], exclude: Collection[str]
) -> tuple[LeftAlone, ...]:
    """The tensors of the folder that stay as they are, largest first."""
    held = folder.specs()
    replaced = {decoder.stored(f"{name}.weight") for name in wanted}
    found: dict[str, LeftAlone] = {}
    for name, kind in decoder.owners.items():
        if not decoder.has(name):  # tied to one that the folder has
            continue
        stored = decoder.stored(name)
        if stored not in replaced and stored in held and stored not in found:
            spec, layer = held[stored], name.rpartition(".")[0]
            if layer in exclude:
                reason = EXCLUDED
            elif not name.startswith(f"{decoder.place}."):
                reason = "not in a decoder block: embeddings, the last norm and the head stay as they are"
            elif len(spec.shape) < 2:
                reason = "a bias, or a norm's scale or shift"
            else:
                reason = f"belongs to {kind}: in decoder blocks only linear layers (nn.Linear) are quantized"
            found[stored] = LeftAlone(stored, reason, nbytes(spec))
    return tuple(sorted(found.values(), key=lambda each: (-each.nbytes, each.name)))


def refuse_others(*, edges: Any, embeddings: Any, ranges: Any, recover: Any, metric: Any) -> None:
    """Raises `InputError` for wishes that `quantize` takes for other models, and that folders do not have yet."""
    if recover is not None:
        raise InputError(
            "recover does not apply to the folder of a language model, which is not trained; leave it out."
        )
    for name, given, usual in (("edges", edges, "auto"), ("embeddings", embeddings, "none")):
        if str(given) != usual:
            raise InputError(
                f"{name} is {given!r}; the embeddings and the head of a language model stay in float: leave it out."
            )
    if ranges != "best":
        raise InputError(
            f"ranges is {ranges!r}; the activations of a language model are quantized per token at run time: leave it out."
        )
    if metric != "accuracy":  # the default of other models
        raise InputError(f"metric is {metric!r}; language models are evaluated by their next-token loss: leave it out.")


def _checked(weights: int | str, groups: int, method: str) -> int:
    word = str(weights).strip()
    if not word.isdecimal() or int(word) not in BITS:
        raise InputError(f"weights is {word!r}; for the folder of a language model write 2, 3, 4 or 8 (bits).")
    if method not in METHODS:
        raise InputError(f"There is no method {method!r}; choose one of {', '.join(METHODS)}.")
    if groups < 0:
        raise InputError(
            f"groups is {groups}; write how many columns share a scale, or 0 for one scale per output channel."
        )
    return int(word)


def _read(bits: int | str) -> int:
    word = str(bits).strip()
    if word == "none":
        return 0
    if word.isdecimal() and 4 <= int(word) <= 8:
        return int(word)
    raise InputError(f"activations is {word!r}; for the folder of a language model write 4 to 8 (bits), or none.")


def _wanted(
    folder: Folder, decoder: Decoder, bits: int, reads: int, groups: int, method: str, exclude: Sequence[str]
) -> dict[str, Wanted]:
    inside = {n: m for n, m in decoder.linears.items() if n.startswith(decoder.place + ".")}
    for name in exclude:
        if name not in inside:
            near = difflib.get_close_matches(name, inside, 3, 0.4) or list(inside)[:3]
            raise InputError(
                f"exclude names {name!r}, which is not a linear layer of a decoder block; similar names: {', '.join(near)}."
            )
    held = folder.specs()
    found: dict[str, Wanted] = {}
    for name, layer in inside.items():
        if name in exclude:
            continue
        scheme = Scheme(bits, run_of(layer.in_features, groups), reads)
        technique = METHODS[method](bits, True, scheme.kind.granularity)
        found[name] = Wanted(scheme, technique, DTYPES[held[decoder.stored(f"{name}.weight")].dtype])
    if not found and inside:
        raise InputError(f"The blocks of {folder.path} have no linear layer left to quantize; exclude fewer.")
    if not found:
        kinds = {kind for name, kind in decoder.owners.items() if name.startswith(f"{decoder.place}.")}
        raise InputError(
            f"The blocks of {folder.path} hold their weights in {', '.join(sorted(kinds))}; of a folder only linear layers "
            "(nn.Linear) are quantized. Bring the model as path/to/file.py:function instead."
        )
    return found


def _texts(folder: Folder, data: Any, eval_data: Any, vocabulary: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    batches = text.drawn(folder, seed) if data == text.ITSELF else text.bring(data, vocabulary)
    if eval_data is None:
        return text.split(batches, seed)
    judged = (
        text.drawn(folder, seed + 1) if eval_data == text.ITSELF else text.bring(eval_data, vocabulary, "EVAL-DATA")
    )
    return batches, judged


def _pieces(calibration: list[Tensor], judged: list[Tensor], decoder: Decoder) -> list[tuple[Tensor, Part]]:
    """As many windows as fit, in pieces small enough that some can check."""
    width = decoder.width
    taken: list[Tensor] = []
    room = MEMORY - sum(8 * width * ids.numel() for ids in judged)
    for window in (w for ids in calibration for w in ids.split(1)):
        room -= 8 * width * window.numel()
        if room >= 0 or not taken:
            taken.append(window)
    tokens = sum(ids.numel() for ids in taken)
    found: list[tuple[Tensor, Part]] = []
    for i, ids in enumerate(text.gathered(taken, min(TOKENS, max(1, tokens // CHECKS)))):
        found.append((ids, "check" if i % CHECKS == CHECKS - 1 else "fit"))
    return found + [(ids, "judge") for ids in text.gathered(judged, TOKENS)]


def _carry_out(
    folder: Folder,
    decoder: Decoder,
    walk: Walk,
    schemes: Mapping[str, Scheme],
    cache: str | None,
    out: str | Path | None,
    progress: Progress,
) -> tuple[int, int]:
    """Walk, and write what is chosen, block by block; bytes of the tensors before and after."""
    held = folder.specs()
    stored = {name: decoder.stored(f"{name}.weight").removesuffix(".weight") for name in schemes}
    replaced = {f"{key}.weight" for key in stored.values()}
    planned = {name: spec for name, spec in held.items() if name not in replaced}
    for name, scheme in schemes.items():
        planned |= specs(stored[name], held[f"{stored[name]}.weight"], scheme)
    scales = _cache_scales(decoder) if cache else {}
    planned |= dict.fromkeys(scales.values(), Spec(held[f"{next(iter(stored.values()))}.weight"].dtype, (1,)))
    sizes = sum(map(nbytes, held.values())), sum(map(nbytes, planned.values()))
    if out is None:
        for done, _ in enumerate(walk.blocks(), 1):
            progress("quantizing blocks", done, len(decoder.blocks))
        return sizes
    with staging(Path(out), unmarked) as aside:
        folder.copy_rest(aside)
        config = settings(schemes, decoder.linears, decoder.place)
        config |= {"kv_cache_scheme": keys_values.settings(cache)} if cache else {}
        (aside / CONFIG).write_text(
            json.dumps({**folder.config, "quantization_config": config}, indent=2) + "\n", encoding="utf-8"
        )
        with Writer(aside / WEIGHTS, planned) as writer:
            rest = set(held) - replaced
            for done, block in enumerate(walk.blocks(), 1):
                rest -= _put(writer, block, stored)
                for name, scale in block.caches.items():
                    writer.put(scales[name], scale)
                for name, value in block.norms.items():
                    key = decoder.stored(name)
                    writer.put(key, value.to(DTYPES[held[key].dtype]))
                    rest.discard(key)
                progress("quantizing blocks", done, len(decoder.blocks))
            for name in sorted(rest):
                writer.put(name, folder.read([name])[name])
        mark(aside)  # by which the folder is known again, and may be replaced
    return sizes


def _cache_scales(decoder: Decoder) -> dict[str, str]:
    """Under which names the scales of caches are stored, by their names in the model: beside the projections."""
    found: dict[str, str] = {}
    for index, block in enumerate(decoder.blocks):
        for name in keys_values.caches(block):
            place = f"{decoder.place}.{index}.{name}"
            beside = next(n for n in decoder.linears if n.startswith(f"{place}."))
            prefix = decoder.stored(f"{beside}.weight").removesuffix(beside.removeprefix(place) + ".weight")
            found |= {f"{place}.{word}": f"{prefix}.{word}" for word in ("k_scale", "v_scale")}
    return found


def _put(writer: Writer, block: Fitted, stored: Mapping[str, str]) -> set[str]:
    """Write the matrices of a block; the names of the biases that took new values."""
    biases = set()
    for name, found in block.matrices.items():
        for key, tensor in tensors(stored[name], found.codes, found.scale, found.scheme).items():
            writer.put(key, tensor)
        if found.bias is not None:
            biases.add(f"{stored[name]}.bias")
            writer.put(f"{stored[name]}.bias", found.bias)
    return biases
