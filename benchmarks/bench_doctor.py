"""How good is the doctor? Every fault in every network of the zoo, and healthy networks beside them.

python benchmarks/bench_doctor.py               the table, written to code/bnbook/assets/doctor.json
python benchmarks/bench_doctor.py --calibrate   what healthy networks show, behind the thresholds
python benchmarks/bench_doctor.py --speed       a ResNet-50 and ten batches of 8 images
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import doctor_faults as faults  # noqa: E402
import doctor_zoo as zoo  # noqa: E402

from bnbook import doctor  # noqa: E402
from bnbook.doctor import _batches  # noqa: E402

NORMS = {"torch": zoo.TORCH, "ours": zoo.OURS}
#: Kinds that a scripted network shows by its weights.
WEIGHTS = (
    "nonfinite-statistics",
    "nonfinite-parameter",
    "untouched-statistics",
    "mixed-mode",
    "outlier-gain",
)
FRESH = 100  # the calibration looks at seeds from 0
TABLE = ROOT / "code" / "bnbook" / "assets" / "doctor.json"


def networks(seeds: range, steps: int) -> dict[tuple[str, str, int], nn.Module]:
    """Trained networks by architecture, layers and seed."""
    return {
        (name, norms, seed): zoo.trained(name, NORMS[norms], seed, steps)
        for seed in seeds
        for norms in NORMS
        for name in zoo.ZOO
    }


def scripted(trained: dict[tuple[str, str, int], nn.Module]) -> dict[tuple[str, str, int], nn.Module]:
    """A network that TorchScript holds: only its weights can be examined."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {("scripted", "torch", FRESH): torch.jit.script(trained["residual", "torch", FRESH])}


def diagnose(kind: str, recipe: faults.Recipe, model: nn.Module) -> str:
    """'found', 'missed', 'wrong module', or '' where the fault cannot be put in."""
    torch.manual_seed(0)
    injected = recipe(copy.deepcopy(model))
    if injected is None:
        return ""
    return _said(doctor.examine(injected.model, **injected.options).of(kind), injected.modules)


def diagnose_loop(kind: str, recipe, model: nn.Module) -> str:
    """As `diagnose`, for a training loop."""
    torch.manual_seed(0)
    watched, modules = recipe(copy.deepcopy(model), doctor.watch)
    found = [finding for finding in watched.findings if finding.kind == kind]
    return _said(found, modules)


def diagnose_pair(kind: str, recipe, model: nn.Module) -> str:
    """As `diagnose`, for two models."""
    torch.manual_seed(0)
    a, b, modules = recipe(copy.deepcopy(model))
    return _said(doctor.compare(a, b, zoo.batches(count=4)).of(kind), modules)


def _said(findings, modules) -> str:
    if not findings:
        return "missed"
    right = modules is None or any(finding.module in modules for finding in findings)
    return "found" if right else "wrong module"


def recall(trained: dict[tuple[str, str, int], nn.Module]) -> dict[str, dict[str, list[str]]]:
    """Diagnoses by recipe and architecture."""
    results: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    tasks = [(diagnose, fault) for fault in faults.FAULTS]
    tasks += [(diagnose_loop, fault) for fault in faults.LOOPS]
    tasks += [(diagnose_pair, fault) for fault in faults.COMPARISONS]
    for examine, (kind, recipe) in tasks:
        for (name, norms, _), model in trained.items():
            if name == "scripted" and (examine is not diagnose or kind not in WEIGHTS):
                continue  # only its numbers can be read
            said = examine(kind, recipe, model)
            if said:
                results[f"{kind}: {recipe.__name__}"][name].append(said)
                if said != "found":
                    print(f"    {kind}: {recipe.__name__} in {name} ({norms}): {said}")
    return results


def alarms(trained: dict[tuple[str, str, int], nn.Module]) -> dict[str, int]:
    """Findings on the healthy networks: with other training batches and with test batches, of 8 and 32."""
    counts = {"examinations": 0, "with an error": 0, "with a warning": 0}
    for key, model in trained.items():
        for test in (False, True):
            for size in (8, 32):
                report = doctor.examine(model, zoo.batches(seed=FRESH + size, size=size, test=test))
                worst = [finding for finding in report.findings if finding.severity != "note"]
                counts["examinations"] += 1
                counts["with an error"] += any(finding.severity == "error" for finding in worst)
                counts["with a warning"] += bool(worst)
                for finding in worst:
                    where = f"{key} {'test' if test else 'train'} {size}"
                    print(f"    healthy {where}: {finding.id} {dict(finding.evidence)}")
    return counts


def calibrate(trained: dict[tuple[str, str, int], nn.Module]) -> None:
    """What healthy networks show: quantiles of each number that a threshold cuts."""
    numbers: dict[str, list[float]] = defaultdict(list)
    for model in trained.values():
        for test in (False, True):
            for size in (8, 32):
                case = _examined(model, zoo.batches(seed=7 + size, size=size, test=test))
                seen = case.seen
                for norm in case.of("batch"):
                    if (gain := norm.gain) is not None and not norm.frozen:
                        numbers["outlier-gain: gain over median"].append(float(gain.max() / gain.median()))
                    stats = seen.trained.stats.get((norm.name, 0))
                    if stats is None or norm.frozen:
                        continue
                    stale = _batches.staleness(norm, stats)
                    numbers["stale-statistics: mean off / sigma"].append(stale.mean)
                    numbers["stale-statistics: sigma off"].append(stale.sigma)
                    numbers["stale-statistics: mean off over scatter"].append(stale.mean / stale.scatter)
                    numbers["large-offset: mean / sigma"].append(max(stats.offset))
                    if seen.dropout:
                        other = seen.switched.stats[norm.name, 0].pooled()[1]
                        ratio = (stats.pooled()[1] + norm.eps) / (other + norm.eps)
                        numbers["dropout-before-norm: variance ratio"].append(float(ratio.median()))
                for _, stats, found in _batches._scatters(case):
                    numbers["unlike-batches: scatter"].append(found.ratio)
                    numbers["unlike-batches: z"].append(found.z)
                    effective = stats.pooled()[1].sum() / stats.means().var(0).sum()
                    numbers["few-effective-values: effective"].append(float(effective))
                if (ratio := _batches._gap_over_noise(case)) is not None:
                    numbers["train-eval-gap: ratio"].append(ratio)
    print(f"{'number':<45} {'n':>5} {'1 %':>8} {'50 %':>8} {'95 %':>8} {'99 %':>8} {'most':>8}")
    for name, values in numbers.items():
        at = torch.tensor(values).quantile(torch.tensor([0.01, 0.5, 0.95, 0.99, 1.0])).tolist()
        print(f"{name:<45} {len(values):>5} " + " ".join(f"{value:8.3g}" for value in at))


def _examined(model, batches):
    from bnbook.doctor import _calls, _norms, _observe, _rules

    found = _norms.norms(model)
    seen = _observe.observe(model, found, _calls.Caller(), batches)
    return _rules.Case(model, found, seen=seen)


class Bottleneck(nn.Module):
    """ResNet-50's block."""

    def __init__(self, c_in: int, c: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *[nn.Conv2d(c_in, c, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU(inplace=True)],
            *[nn.Conv2d(c, c, 3, stride, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU(inplace=True)],
            *[nn.Conv2d(c, 4 * c, 1, bias=False), nn.BatchNorm2d(4 * c)],
        )
        short = [nn.Conv2d(c_in, 4 * c, 1, stride, bias=False), nn.BatchNorm2d(4 * c)]
        self.downsample = nn.Sequential(*short) if stride > 1 or c_in != 4 * c else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Block with a skip connection."""
        return torch.relu(self.body(x) + self.downsample(x))


def resnet50() -> nn.Module:
    """The shape of ResNet-50: 53 batch norms, 25.6 million parameters."""
    blocks, c_in = [], 64
    for c, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for k in range(count):
            blocks.append(Bottleneck(c_in, c, stride if k == 0 else 1))
            c_in = 4 * c
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def speed() -> dict[str, float]:
    """Seconds on one thread for each depth, ten batches of 8 images of 224 x 224, and the peak of memory."""
    torch.set_num_threads(1)
    model = resnet50().eval()
    batches = [(torch.randn(8, 3, 224, 224), torch.randint(1000, (8,))) for _ in range(10)]
    seconds = {}
    for name, options in (
        ("weights", {}),
        ("shapes", {"example": (8, 3, 224, 224)}),
        ("batches", {"batches": batches}),
    ):
        start = time.perf_counter()
        doctor.examine(model, **options)
        seconds[name] = round(time.perf_counter() - start, 2)
    start = time.perf_counter()
    with torch.no_grad():
        for x, _ in batches:
            model(x)
    seconds["one plain pass"] = round(time.perf_counter() - start, 2)
    return seconds | {"peak GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    if options.speed:
        print(speed())
        return
    if options.calibrate:
        calibrate(networks(range(options.seeds), 150))
        return
    # Other networks and other batches than those that set the thresholds.
    trained = networks(range(FRESH, FRESH + options.seeds), 150)
    counts = alarms(trained)
    print(counts)
    first = {key: model for key, model in trained.items() if key[2] == FRESH}
    results = recall(first | scripted(trained))
    total = sum(len(said) for row in results.values() for said in row.values())
    right = sum(said.count("found") for row in results.values() for said in row.values())
    print(f"found with the right module: {right} of {total} ({right / total:.1%})")
    table = {
        fault: {name: [said.count("found"), len(said)] for name, said in row.items()}
        for fault, row in results.items()
    }
    rows = ",\n".join(f"{json.dumps(fault)}: {json.dumps(row)}" for fault, row in table.items())
    TABLE.write_text(f'{{"healthy": {json.dumps(counts)},\n"faults": {{\n{rows}\n}}}}\n')


if __name__ == "__main__":
    main()
