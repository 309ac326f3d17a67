"""The whole path on a trained model: convert dense and gated, inspect, verify, score, generate, time, draw; `make demo` runs it.

The model was trained on the characters of Shakespeare in aiha-lab's layout: 4 layers of 8 heads, hidden 128, 256 persistent vectors a head,
memory 64; `gated.ckpt` is the same model after L0 gating, which closed 17 of its 32 heads.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

import engine
from engine.measure.clock import bar, interleaved, paired_ratio

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OUT = ROOT / "build" / "demo"


def main() -> int:
    OUT.mkdir(parents=True, exist_ok=True)
    for name in ("dense", "gated"):
        title(f"Convert {name}.ckpt")
        headcount("convert", str(HERE / f"{name}.ckpt"), str(OUT / name), "--force")
    title("Inspect the pruned model")
    headcount("inspect", str(OUT / "gated"), "--plot", str(OUT / "inspect.png"))
    title("Verify it against the gated source, every head computed and masked")
    headcount("verify", str(OUT / "gated"), "--against", str(HERE / "gated.ckpt"), "--text", str(HERE / "heldout.txt"))
    title("Score held-out text")
    for name in ("dense", "gated"):
        print(f"{name:6}", end=" ", flush=True)
        headcount("score", str(OUT / name), str(HERE / "heldout.txt"), "--segment", "64")
    title("Generate 300 characters")
    headcount("generate", str(OUT / "gated"), "--prompt", "ROMEO:\n", "--max-new-tokens", "300", "--temperature", "0.8", "--seed", "7")
    title("Time dense against compact")
    benchmark()
    title("Where everything is")
    for path in (OUT / "dense", OUT / "gated", OUT / "inspect.png", OUT / "speed.png"):
        print(path.relative_to(ROOT))
    return 0


def title(text: str) -> None:
    print(f"\n== {text}", flush=True)


def headcount(*arguments: str) -> None:
    """Run one verb as a user would; the demo stops with its exit status when it fails."""
    status = subprocess.run([sys.executable, "-m", "engine", *arguments], check=False).returncode
    if status:
        raise SystemExit(status)


def benchmark() -> None:
    """Prefill of 512 tokens and 32 decoded tokens, the two models in turn."""
    with engine.load(OUT / "dense") as dense, engine.load(OUT / "gated") as gated:
        models = {"dense": dense, "compact": gated}
        ids = np.random.default_rng(0).integers(0, dense.spec.vocab, (1, 512))
        work = {
            "prefill 512": {name: (lambda m=model: m.score(ids)) for name, model in models.items()},
            "decode 32": {name: (lambda m=model: m.generate([1], max_new_tokens=32)) for name, model in models.items()},
        }
        nominal = dense.cost().decode.needed / gated.cost().decode.needed
        rows = []
        for what, runs in work.items():
            with bar(what, 2 * 12, quiet=False) as advance:
                seconds = interleaved(runs, rounds=10, warmup=2, advance=advance)
            slow, fast = seconds["dense"], seconds["compact"]
            rows.append((what, float(np.median(slow)), float(np.median(fast)), paired_ratio(slow, fast)))
    print(f"{'':12} {'dense ms':>9} {'compact ms':>11} {'speed-up':>9}   (FLOPs: {nominal:.2f}x)")
    for what, slow, fast, ratio in rows:
        print(f"{what:12} {slow * 1e3:9.1f} {fast * 1e3:11.1f} {ratio:8.2f}x")
    draw(rows, nominal)


def draw(rows: list[tuple[str, float, float, float]], nominal: float) -> None:
    """Achieved speed-up per kind of work, the FLOP ratio as a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    bars = axes.bar([row[0] for row in rows], [row[3] for row in rows], width=0.5, color="#4c72b0")
    axes.bar_label(bars, fmt="%.2f×")
    axes.axhline(nominal, color="#c44e52", linestyle="--", label=f"FLOPs: {nominal:.2f}×")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_ylabel("dense time / compact time")
    axes.set_title("15 of 32 heads kept")
    axes.set_ylim(0, max(nominal, *(row[3] for row in rows)) * 1.25)
    axes.legend()
    figure.savefig(OUT / "speed.png", dpi=120)


if __name__ == "__main__":
    sys.exit(main())
