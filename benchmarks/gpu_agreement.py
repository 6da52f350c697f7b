"""Do trained networks answer on a GPU as on the CPU? The packaged networks, on samples of their test data.

    python benchmarks/gpu_agreement.py --data DIR --export samples.pt     # where the data is
    python benchmarks/gpu_agreement.py --samples samples.pt --out DIR     # on a CUDA machine

Two answers are compared for each sample: by the confidence policy at a threshold of 0.9, and at full T. Rounding
differs between devices, so that a spike at its threshold may move, and with it, now and then, an answer. In trained
networks few answers depend on one spike.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, Results, code, machine, markdown, measured_on
from torch import Tensor

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.checkpoints.packaged import packaged
from seenn_plugin.checkpoints.pretrained import Pretrained
from seenn_plugin.policies import ConfidencePolicy

_SAMPLES, _BATCH = 512, 64
_POLICY = ConfidencePolicy(threshold=0.9, temperature=1.0)
PRECISIONS: dict[str, tuple[bool, dict[str, Any]]] = {
    "float32": (False, {}),
    "float32, CUDA graphs": (False, {"cuda_graphs": True}),
    "convolutions in TF32 (PyTorch's default)": (True, {}),
    "bfloat16 autocast": (True, {"autocast": torch.bfloat16}),
}


def export(root: Path, file: Path) -> None:
    """Write test samples, drawn at random, of every packaged network whose data lies in ``root``."""
    samples = {}
    for name, folder in packaged().items():
        pretrained = Pretrained.load(folder)
        own = root / pretrained.card.loader.rpartition(":")[2]  # DIR/cifar10, DIR/nmnist, or files in DIR
        data = pretrained.data(own if own.is_dir() else root, "test")
        chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:_SAMPLES].tolist()
        rows, labels = zip(*(data[i] for i in chosen), strict=True)
        samples[name] = torch.stack([torch.as_tensor(row) for row in rows]).half(), torch.tensor(labels)
    torch.save(samples, file)


@torch.no_grad()
def answers(name: str, x: Tensor, device: torch.device, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Answers at the exit and at full T, and the exits, each long ``[S]``."""
    pretrained = Pretrained.load(packaged()[name], device)
    snn = EarlyExitWrapper(pretrained.model, _POLICY, **pretrained.card.wrapper, **options)
    parts = []
    for batch in x.float().to(device).split(_BATCH):
        result = snn.infer(batch)
        parts.append((result.logits.argmax(1), snn.trace(batch)[-1].argmax(1), result.timesteps))
    early, full, exits = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return early, full, exits


def compare(file: Path, device: torch.device, results: Results) -> None:
    samples = torch.load(file)
    for name, (x, labels) in samples.items():
        wanted = answers(name, x, torch.device("cpu"), {})
        rows: dict[str, dict[str, Any]] = {"on the CPU": _facts(wanted, wanted, labels)}
        for precision, (tf32, options) in PRECISIONS.items():
            torch.backends.cudnn.allow_tf32 = tf32
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    rows[precision] = _facts(answers(name, x, device, options), wanted, labels)
                except Exception as error:
                    rows[precision] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
        results.add(name, {"machine": machine(device), "code": code()}, {"samples": len(labels), "ways": rows})
        print(name, rows, flush=True)


def _facts(found: Sequence[Tensor], wanted: Sequence[Tensor], labels: Tensor) -> dict[str, float]:
    def share(equal: Tensor) -> float:
        return float(equal.double().mean())

    return {
        "accuracy": share(found[0] == labels),
        "accuracy at full T": share(found[1] == labels),
        "mean timesteps": float(found[2].double().mean()),
        "equal answers": share(found[0] == wanted[0]),
        "equal answers at full T": share(found[1] == wanted[1]),
        "equal exits": share(found[2] == wanted[2]),
    }


def table(results: Results) -> str:
    parts = []
    for name in packaged():
        if name not in results.rows:
            parts.append(f"### {name}\n\nNot measured.\n")
            continue
        row = results.rows[name]
        names = list(row["ways"]["on the CPU"])
        lines = [
            [way, facts["failed"], *[""] * (len(names) - 1)]
            if "failed" in facts
            else [way, *(f"{facts[n]:.2f}" if n == "mean timesteps" else f"{facts[n]:.2%}" for n in names)]
            for way, facts in row["ways"].items()
        ]
        parts.append(f"### {name} ({row['samples']} test samples)\n\n" + markdown(["", *names], lines))
    return "\n".join([*parts, measured_on(results.rows)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--export", type=Path)
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if asked.export:
        export(asked.data, asked.export)
        return 0
    device = torch.device(asked.device)
    if asked.samples and device.type == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device: nothing was measured.", file=sys.stderr)
        return 2
    results = Results(asked.out / "gpu-agreement.json")
    if asked.samples:
        compare(asked.samples, device, results)
    (asked.out / "gpu-agreement.md").write_text(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
