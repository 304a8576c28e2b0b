"""How fast is a FLUX.1 step on this GPU, against what the GPU could do and against diffusers?

Random weights of the published dimensions (11.9 B) are made on the device, nothing is downloaded:
speed does not depend on what weights say. Quality is not measured here. In one run, medians of
interleaved repeats:

- ceilings: matrix products of the six FLUX shapes in bfloat16 and 8 bits, attention, copying
- a step at 512, 1024 and of a 1 MP edit: ours, ours in 8 bits, diffusers, diffusers compiled
- mixed steps: what sharing a forward gains, and how far results are from those alone; also of exact
  requests together with such in 8 bits, on a model with both forms
- the step-cost model fitted to our timings, and its error

    python -m bench.gpu [--minutes 8.5] [--no-compile]
    python -m bench.gpu --dry-run     # the same code, a toy model on the CPU; numbers mean nothing

Needs a CUDA device; without one it says so and exits with 2. Prints tables and JSON lines.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional

from bench.gpu_cases import REAL, TOY, Case, Scale
from fluxserve.engines.local.cost import CostModel, Timing, full, load_of
from fluxserve.flux import packed, packing
from fluxserve.flux.modules import FluxTransformer
from fluxserve.flux.packed import Row
from fluxserve.flux.prepare import prepare
from fluxserve.flux.quantize import (
    SINGLE_LAYERS,
    STREAM_LAYERS,
    Fp8Linear,
    TwinLinear,
    quantize_rows,
)
from fluxserve.flux.spec import TransformerSpec

Work = Callable[[], object]


class Bench:
    """The device, its clock, and the time that is left."""

    def __init__(self, device: torch.device, scale: Scale, minutes: float) -> None:
        self.device, self.scale = device, scale
        self._ends = time.monotonic() + 60 * minutes
        self.skipped: list[str] = []

    def seconds(self, work: Work) -> float:
        """One timed run."""
        if self.device.type != "cuda":
            began = time.perf_counter()
            work()
            return time.perf_counter() - began
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def medians(self, works: Mapping[str, Work], repeats: int = 0) -> dict[str, float]:
        """Seconds of each, taken in turns after a warm-up."""
        spent: dict[str, list[float]] = {name: [] for name in works}
        for work in works.values():
            for _ in range(2):
                work()
        for _ in range(repeats or self.scale.repeats):
            for name, work in works.items():
                spent[name].append(self.seconds(work))
        return {name: statistics.median(values) for name, values in spent.items()}

    def has_time(self, what: str, seconds: float) -> bool:
        """Whether `seconds` are left; notes what is left out otherwise."""
        if time.monotonic() + seconds <= self._ends:
            return True
        self.skipped.append(what)
        return False

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=self.scale.dtype)


def tell(kind: str, **figures: object) -> None:
    print(json.dumps({"bench": "gpu", "part": kind, **figures}))


# --- ceilings -----------------------------------------------------------------------------------


def shapes(spec: TransformerSpec) -> Mapping[str, tuple[int, int]]:
    """The large linears: (inputs, outputs)."""
    width = spec.width
    return {
        "qkv": (width, 3 * width),
        "out": (width, width),
        "up": (width, 4 * width),
        "down": (4 * width, width),
        "fused": (width, 7 * width),
        "single out": (5 * width, width),
    }


def products(bench: Bench, rows: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each large linear with so many rows, in the dtype and in 8 bits."""
    plain: dict[str, Work] = {}
    eight: dict[str, Work] = {}
    for name, (inputs, outputs) in shapes(bench.scale.spec).items():
        x = bench.randn(rows, inputs)
        layer = nn.Linear(inputs, outputs, device=bench.device, dtype=bench.scale.dtype)
        layer.requires_grad_(False)
        small = Fp8Linear(layer)
        values, scales = quantize_rows(x)
        plain[name] = lambda x=x, layer=layer: functional.linear(x, layer.weight)  # type: ignore[misc]
        eight[name] = lambda v=values, s=scales, q=small: q._kernel(v, s, torch.bfloat16)  # type: ignore[misc]
    return bench.medians(plain), bench.medians(eight)


def ceiling_s(bench: Bench, case: Case) -> dict[str, float]:
    """Seconds of a step if nothing but its products and attention took time: bf16, 8 bits."""
    spec = bench.scale.spec
    double = ("qkv", "out", "up", "down")
    parts = {}
    times = {rows: products(bench, rows) for rows in {case.rows, case.rows - case.text, case.text}}
    for at, kind in enumerate(("bf16", "fp8")):
        streams = sum(
            times[rows][at][name] for rows in (case.rows - case.text, case.text) for name in double
        )
        single = sum(times[case.rows][at][name] for name in ("fused", "single out"))
        parts[kind] = spec.num_layers * streams + spec.num_single_layers * single
    heads = (1, spec.num_attention_heads, case.rows, spec.attention_head_dim)
    q, k, v = (bench.randn(*heads) for _ in range(3))
    attention = bench.medians({"": lambda: functional.scaled_dot_product_attention(q, k, v)})[""]
    blocks = spec.num_layers + spec.num_single_layers
    flops = 2 * 12 * spec.width**2 * blocks * case.rows
    of_attention = 4 * case.rows**2 * spec.width
    for kind, seconds in parts.items():
        print(
            f"{case.name:10} {kind}: products {flops / seconds / 1e12:7.1f} TFLOP/s,"
            f" attention {of_attention / attention / 1e12:7.1f} TFLOP/s"
        )
    tell("ceiling", case=case.name, rows=case.rows, products_s=parts, attention_s=attention,
         products_flops=flops, attention_flops=of_attention)  # fmt: skip
    return {kind: seconds + blocks * attention for kind, seconds in parts.items()}


def copying(bench: Bench) -> None:
    size = 2**30 if bench.device.type == "cuda" else 2**20
    source = torch.empty(size, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    seconds = bench.medians({"": lambda: target.copy_(source)})[""]
    print(f"copying: {2 * size / seconds / 1e12:.2f} TB/s read and written")
    tell("copying", bytes_per_s=2 * size / seconds)


# --- models -------------------------------------------------------------------------------------


def randomize(module: nn.Module) -> None:
    """Values that keep activations tame through 57 blocks."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.constant_(parameter, 1.0 if "norm" in name else 0.0)


def made(bench: Bench, build: Callable[[], nn.Module]) -> nn.Module:
    """A model of random weights, made where it will run."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(bench.scale.dtype)
    try:
        with torch.device(bench.device):
            model = build()
    finally:
        torch.set_default_dtype(before)
    randomize(model)
    return model.eval().requires_grad_(False)


def in_8_bits(model: FluxTransformer) -> FluxTransformer:
    """The same model with 8-bit linears; what is not replaced is shared with it."""
    with torch.device("meta"):
        twin = FluxTransformer(model.spec)
    large = {*STREAM_LAYERS, *SINGLE_LAYERS}
    for name, module in model.named_modules():
        above, _, leaf = name.rpartition(".")
        if isinstance(module, nn.Linear):
            is_large = leaf in large and name.startswith(("doubles.", "singles."))
            setattr(twin.get_submodule(above), leaf, Fp8Linear(module) if is_large else module)
        for own, parameter in module.named_parameters(recurse=False):
            if not isinstance(module, nn.Linear):
                setattr(twin.get_submodule(name), own, parameter)
    return twin


def in_both(model: FluxTransformer, small: FluxTransformer) -> FluxTransformer:
    """A model with the large linears of both; nothing is copied."""
    with torch.device("meta"):
        both = FluxTransformer(model.spec)
    for name, module in model.named_modules():
        above, _, leaf = name.rpartition(".")
        coarse = small.get_submodule(name)
        if isinstance(module, nn.Linear):
            layer = TwinLinear(module, coarse) if isinstance(coarse, Fp8Linear) else module
            setattr(both.get_submodule(above), leaf, layer)
        for own, parameter in module.named_parameters(recurse=False):
            if not isinstance(module, nn.Linear):
                setattr(both.get_submodule(name), own, parameter)
    return both


def row(bench: Bench, model: FluxTransformer, case: Case) -> Row:
    spec = bench.scale.spec
    references = [case.reference] if case.reference else []
    rows = sum(height * width for height, width in references)
    positions = [
        packing.text_positions(case.text),
        packing.grid_positions(*case.picture),
        packing.reference_positions(references),
    ]
    prepared = prepare(
        model,
        text=bench.randn(case.text, spec.joint_attention_dim),
        pooled=bench.randn(spec.pooled_projection_dim),
        positions=torch.cat(positions),
        sigmas=torch.tensor([0.7]),
        guidance=3.5,
        reference=bench.randn(rows, spec.in_channels) if rows else None,
    )
    return Row(prepared, bench.randn(case.picture[0] * case.picture[1], spec.in_channels), 0)


def call(bench: Bench, model: nn.Module, case: Case) -> Work:
    """One forward of diffusers' model for the same request."""
    spec, tokens = bench.scale.spec, case.rows - case.text
    given = {
        "hidden_states": bench.randn(1, tokens, spec.in_channels),
        "encoder_hidden_states": bench.randn(1, case.text, spec.joint_attention_dim),
        "pooled_projections": bench.randn(1, spec.pooled_projection_dim),
        "timestep": torch.tensor([0.7], device=bench.device, dtype=bench.scale.dtype),
        "img_ids": torch.zeros(tokens, 3, device=bench.device),
        "txt_ids": torch.zeros(case.text, 3, device=bench.device),
        "guidance": torch.tensor([3.5], device=bench.device),
    }
    return lambda: model(**given, return_dict=False)


# --- steps --------------------------------------------------------------------------------------


def steps(bench: Bench, model: FluxTransformer, small: FluxTransformer, compiles: bool) -> None:
    other = made(bench, lambda: FluxTransformer2DModel(**asdict(bench.scale.spec)))
    assert isinstance(other, FluxTransformer2DModel)
    ceilings = {case.name: ceiling_s(bench, case) for case in bench.scale.cases}
    works: dict[str, dict[str, Work]] = {}
    for case in bench.scale.cases:
        mine, mine_small = row(bench, model, case), row(bench, small, case)
        works[case.name] = {
            "ours bf16": lambda r=mine: packed.forward(model, [r]),  # type: ignore[misc]
            "ours fp8": lambda r=mine_small: packed.forward(small, [r]),  # type: ignore[misc]
            "diffusers": call(bench, other, case),
        }
    report(bench, "eager", works, ceilings)
    if compiles and bench.has_time("diffusers compiled", 150):
        other.compile_repeated_blocks(fullgraph=True, dynamic=False)
        report(bench, "compiled", works, ceilings)


def report(
    bench: Bench,
    how: str,
    works: Mapping[str, Mapping[str, Work]],
    ceilings: Mapping[str, Mapping[str, float]],
) -> None:
    print(f"\nsteps, diffusers {how}; milliseconds, and share of the ceiling")
    for name, several in works.items():
        if not bench.has_time(f"steps at {name}, diffusers {how}", 30):
            continue
        found = bench.medians(several)
        shares = {
            kind: ceilings[name]["fp8" if "fp8" in kind else "bf16"] / seconds
            for kind, seconds in found.items()
        }
        line = "  ".join(f"{kind} {s * 1e3:8.1f} ({shares[kind]:.0%})" for kind, s in found.items())
        print(f"{name:10} {line}")
        tell("step", case=name, diffusers=how, seconds=found, share_of_ceiling=shares)


def shared_and_alone(
    bench: Bench, model: FluxTransformer, rows: Sequence[Row]
) -> tuple[dict[str, float], float]:
    """Seconds of both, and the largest difference of their results."""

    def shared() -> list[Tensor]:
        return packed.forward(model, rows)

    def alone() -> list[Tensor]:
        return [packed.forward(model, [one])[0] for one in rows]

    found = bench.medians({"shared": shared, "alone": alone})
    pairs = zip(shared(), alone(), strict=True)
    return found, max(float((a - b).abs().max()) for a, b in pairs)


def mixes(bench: Bench, model: FluxTransformer, small: FluxTransformer) -> None:
    """What sharing a forward gains, and how far its results are from those alone."""
    print("\nshared forwards against one after the other")
    by_name = {case.name: case for case in bench.scale.cases}
    wanted = {
        "8 x 512": ["512"] * 8,
        "2 x 1024": ["1024"] * 2,
        "512 + 1024 + edit": ["512", "1024", "edit 1 MP"],
    }
    both = in_both(model, small)
    for precision, network in (("bf16", model), ("fp8", small), ("both", both)):
        for name, members in wanted.items():
            if not bench.has_time(f"mix {name} {precision}", 25):
                continue
            rows = [row(bench, network, by_name[member]) for member in members]
            if network is both:  # every second request asked for 8 bits
                rows = [replace(one, is_coarse=at % 2 == 1) for at, one in enumerate(rows)]
            found, apart = shared_and_alone(bench, network, rows)
            gain = found["alone"] / found["shared"]
            print(f"{name:20} {precision}: {gain:.3f} x, largest difference {apart:.3g}")
            tell("mix", mix=name, precision=precision, seconds=found, largest_difference=apart)


def fitted(bench: Bench, model: FluxTransformer) -> None:
    """The step-cost model over our own timings, as the engine fits it at start-up."""
    if not bench.has_time("cost model", 40):
        return
    sets: Sequence[Sequence[Case]] = [
        *([case] for case in bench.scale.cases),
        *([case] * 2 for case in bench.scale.cases),
        [bench.scale.cases[0]] * 4,
        bench.scale.cases[:2],
    ]
    timings = []
    for cases in sets:
        rows = [row(bench, model, case) for case in cases]
        seconds = bench.medians({"": lambda rows=rows: packed.forward(model, rows)}, repeats=3)[""]  # type: ignore[misc]
        timings.append(Timing(load_of(full(case.rows) for case in cases), seconds))
    cost = CostModel.fitted(timings)
    print(f"\ncost model: mean error {cost.error:.1%}, {cost.coefficients}")
    tell("cost", error=cost.error, coefficients=cost.coefficients._asdict())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.5, help="leave out what does not fit")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--dry-run", action="store_true", help="toy model on the CPU")
    args = parser.parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        print("bench/gpu.py needs a CUDA device and found none; --dry-run tests its plumbing")
        return 2
    device = torch.device("cpu" if args.dry_run else "cuda")
    bench = Bench(device, TOY if args.dry_run else REAL, args.minutes)
    if args.dry_run:
        print("DRY RUN: a toy model on the CPU; the numbers below mean nothing\n")
    name = "CPU, dry run" if args.dry_run else torch.cuda.get_device_name(device)
    print(f"{name}, torch {torch.__version__}, medians of {bench.scale.repeats}")
    tell("device", name=name, torch=torch.__version__, is_dry_run=args.dry_run)
    torch.manual_seed(0)
    with torch.inference_mode():
        copying(bench)
        model = made(bench, lambda: FluxTransformer(bench.scale.spec))
        assert isinstance(model, FluxTransformer)
        small = in_8_bits(model)
        steps(bench, model, small, compiles=not args.no_compile and not args.dry_run)
        mixes(bench, model, small)
        fitted(bench, model)
    if bench.skipped:
        print(f"\nnot measured, no time left: {', '.join(bench.skipped)}")
    tell("end", not_measured=bench.skipped, is_dry_run=args.dry_run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
