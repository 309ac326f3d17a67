"""Fine-tuning and trials on tiny models: what is learnt, what a stopped run goes on with, the rules, the verb."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import engine
from engine import checkpoint as checkpoints
from engine.errors import EngineError, InputError, Unsupported
from engine.formats.read import read_source
from engine.prune import train as training
from engine.prune.encoder import TaggingEncoder
from engine.prune.evaluate import evaluate
from engine.prune.rank import RankOptions
from engine.prune.task import DataOptions, model_labels, read_data
from engine.prune.train import TrainOptions, fine_tune
from engine.prune.trials import Files, TrialOptions, run_trials
from tests.support.command import headcount
from tests.support.hugging_face_sources import gpt2
from tests.support.prune_models import random_model, write_text

CPU = torch.device("cpu")
FAST = TrainOptions(epochs=2, rate=0.02, batch=4, dropout=0.1)


def weights_after(text: str, options: TrainOptions, partial: Path | None = None, progress: Any = None) -> dict[str, np.ndarray]:
    checkpoint = random_model()
    encoder = TaggingEncoder(checkpoint, CPU)
    fine_tune(encoder, read_data([text], model_labels(checkpoint), checkpoint, DataOptions()), options, partial, progress)
    return {name: np.asarray(array) for name, array in encoder.trained().weights.items()}


def test_fine_tuning_learns_and_repeats(tmp_path: Path) -> None:
    text = write_text(tmp_path / "train.conllu", 24)
    checkpoint = random_model()
    labels = model_labels(checkpoint)
    data = read_data([text], labels, checkpoint, DataOptions())
    before = evaluate(TaggingEncoder(checkpoint, CPU), data, labels)["score"]
    state = torch.get_rng_state()
    first, again = weights_after(text, FAST), weights_after(text, FAST)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers are untouched
    assert all(np.array_equal(first[name], again[name]) for name in first)
    trained = replace(checkpoint, weights=weights_after(text, replace(FAST, epochs=8, dropout=0.0)))
    assert evaluate(TaggingEncoder(trained, CPU), data, labels)["score"] > max(before, 0.9)
    short = replace(FAST, epochs=1, batch=12)
    first = weights_after(text, short)
    for other in (replace(short, seed=1), replace(short, shuffle=True), replace(short, decay=0.5), replace(short, precision="bfloat16")):
        changed = weights_after(text, other)
        assert any(not np.array_equal(first[name], changed[name]) for name in first), other
        assert changed["head.labels"].dtype == np.float32


def test_the_rate_rises_and_falls() -> None:
    shares = [training._share(step, 10, 0.2) for step in range(10)]
    assert shares[:3] == [0.5, 1.0, 1.0] and shares[-1] == pytest.approx(1 / 8)
    assert shares[1:] == sorted(shares[1:], reverse=True)
    assert training._share(0, 5, 0.0) == 1.0 and training._share(4, 5, 1.0) == 1.0


def test_an_interrupted_fine_tuning_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = write_text(tmp_path / "train.conllu", 12)
    whole = weights_after(text, FAST)
    monkeypatch.setattr(training, "SAVE_SECONDS", -1.0)
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if seen == [1, 2, 3, 4]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        weights_after(text, FAST, tmp_path / "state.pt", stop)
    assert (tmp_path / "state.pt").exists()
    found = weights_after(text, FAST, tmp_path / "state.pt", stop)
    assert seen == [1, 2, 3, 4, 4, 5, 6] and not (tmp_path / "state.pt").exists()
    assert all(np.array_equal(whole[name], found[name]) for name in whole)
    (tmp_path / "state.pt").write_bytes(b"damaged")
    with pytest.raises(EngineError, match="a training state written here"):
        weights_after(text, FAST, tmp_path / "state.pt")


def test_wrong_training(tmp_path: Path) -> None:
    text = write_text(tmp_path / "train.conllu", 4)
    with pytest.raises(EngineError, match=r"loss of training step \d: expected a finite number"):
        weights_after(text, replace(FAST, rate=1e30, epochs=4, batch=2, warmup=0.0))
    with pytest.raises(InputError, match=r"(?s)epochs: expected at least 1, found 0.*precision: expected float32 or bfloat16"):
        weights_after(text, TrainOptions(epochs=0, precision="int8"))
    for rate in (1e38, float("inf"), float("nan"), 0.0):
        with pytest.raises(InputError, match="rate: expected a positive number"):
            weights_after(text, replace(FAST, rate=rate))


def test_gradients_and_logits_that_are_no_numbers(tmp_path: Path) -> None:
    """The loss is still one where they are not."""
    text = write_text(tmp_path / "train.conllu", 4)
    checkpoint = random_model()
    data = read_data([text], model_labels(checkpoint), checkpoint, DataOptions())

    def scaled(by: float) -> TaggingEncoder:
        return TaggingEncoder(
            replace(checkpoint, weights={**checkpoint.weights, "head.labels": checkpoint.weights["head.labels"] * np.float32(by)}), CPU
        )

    with pytest.raises(EngineError, match=r"length of the gradient of training step 1: expected a finite number, found (inf|nan)"):
        fine_tune(scaled(1e37), data, FAST, tmp_path / "state.pt")
    with pytest.raises(EngineError, match="logits of the model: expected finite numbers, found NaN or infinity"):
        evaluate(scaled(3e38), data, model_labels(checkpoint))


def run(folder: Path, options: TrialOptions, name: str = "out", **more: Any) -> dict[str, Any]:
    files = Files([str(folder / "train.conllu")], [str(folder / "dev.conllu")], [str(folder / "test.conllu")], more.pop("sources", ()))
    return run_trials(random_model(), folder / name, files, DataOptions(), options, **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("train", "dev", "test")):
        write_text(tmp_path / f"{name}.conllu", 8, seed)
    return tmp_path


SOME = TrialOptions(counts=(1, 3), controls=("random", "highest"), train=replace(FAST, epochs=1))


def test_trials_choose_on_dev_and_report_on_test(folder: Path) -> None:
    summary = run(folder, SOME)
    assert [order["order"] for order in summary["orders"]] == ["gradient", "random", "highest"]
    low, _, high = summary["orders"]
    for order in summary["orders"]:
        assert [trial["k"] for trial in order["trials"]] == [1, 3]
        assert order["trials"][0]["heads"] == order["trials"][1]["heads"][:1]
        best = max(order["trials"], key=lambda trial: (trial["dev"]["score"], trial["k"]))
        assert order["best"] == best and set(best) == {"k", "heads", "dev", "test", "seconds"}
        with engine.load(folder / "out" / order["order"] / "best") as model:
            gone = [[layer, head] for layer, row in enumerate(model.spec.layers) for head in range(3) if head not in row.attention.kept]
            assert sorted(gone) == sorted(best["heads"])
    scores = np.load(folder / "out" / "gradient" / "scores.npy")
    heads = sorted(np.ndindex(2, 3), key=lambda head: scores[head])
    assert [tuple(head) for head in low["trials"][1]["heads"]] == heads[:3]
    assert [tuple(head) for head in high["trials"][1]["heads"]] == heads[:2:-1]
    assert summary["best"]["order"] == "gradient" and summary["dense"]["k"] == 0
    assert json.loads((folder / "out" / "summary.json").read_text()) == json.loads(json.dumps(summary))


def test_stopped_trials_go_on_with_what_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(SOME, controls=())
    whole = run(folder, options)
    begun: list[str] = []

    def stop(what: str) -> None:
        begun.append(what)
        if what == "gradient k=3":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, options, "again", report=stop)
    assert begun == ["dense", "ranking gradient", "gradient k=1", "gradient k=3"]
    begun.clear()
    again = run(folder, options, "again", report=begun.append)
    assert begun == ["gradient k=3"]
    for summary in (whole, again):  # times differ
        for trial in (summary["dense"], summary["best"], *summary["orders"][0]["trials"], summary["orders"][0]["best"]):
            trial["seconds"] = 0
    assert again == whole
    begun.clear()
    more = run(folder, replace(options, counts=(1, 2, 3)), "again", report=begun.append)
    assert begun == ["gradient k=2"] and len(more["orders"][0]["trials"]) == 3
    with pytest.raises(InputError, match=r"(?s)train: expected .*another output directory"):
        run(folder, replace(options, train=replace(options.train, seed=5)), "again")
    (folder / "again" / "gradient" / "scores.npy").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"scores.npy: expected a whole .npy array"):
        run(folder, options, "again")
    with pytest.raises(InputError, match=r"expected a folder to make or to go on in"):
        run(folder, options, "dev.conllu")
    (folder / "again" / "mine").write_text("kept")
    begun.clear()
    run(folder, replace(options, train=replace(options.train, seed=5)), "again", report=begun.append, force=True)
    assert len(begun) == 4 and (folder / "again" / "mine").exists()


def test_best_is_the_model_of_the_best_trial(folder: Path) -> None:
    """Also where a process was killed between the trial's result and its model, or the run before tried other counts."""
    run(folder, replace(SOME, controls=()))
    place, begun = folder / "out" / "gradient", list[str]()
    (place / ".summary.json.abc.part").write_text("left by a process that was killed")
    (folder / "out" / ".summary.json.abc.part").write_text("left by a process that was killed")
    for counts in ((1,), (3,), (1, 3)):
        summary = run(folder, replace(SOME, counts=counts, controls=()), report=begun.append)
        assert checkpoints.read(place / "best").provenance["pruning"]["heads"] == summary["best"]["heads"]
    assert 1 <= len(begun) <= 3 and set(begun) <= {"gradient k=1 again", "gradient k=3 again"}
    begun.clear()
    (place / "best").rename(place / "elsewhere")
    again = run(folder, replace(SOME, controls=()), report=begun.append)
    assert begun == [f"gradient k={again['best']['k']} again"] and not (folder / "out" / ".summary.json.abc.part").exists()
    saved = [checkpoints.read(place / name).weights for name in ("best", "elsewhere")]
    assert all(np.array_equal(saved[0][name], array) for name, array in saved[1].items())


def test_stop_on_drop_and_other_starts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.9, 0.5, 0.6, 0.6, 0.4, 0.8])
    monkeypatch.setattr("engine.prune.trials.evaluate", lambda *_: {"score": next(scores)})
    files = Files([str(folder / "train.conllu")], [str(folder / "dev.conllu")])
    options = replace(SOME, counts=(1, 2, 3, 4, 5), controls=(), stop_on_drop=True, start="fine-tuned")
    summary = run_trials(random_model(), folder / "out", files, DataOptions(), options)
    (order,) = summary["orders"]
    assert [trial["k"] for trial in order["trials"]] == [1, 2, 3, 4] and order["stopped_at"] == 4
    assert order["best"]["k"] == 3  # of equal scores the most heads removed
    assert "test" not in summary["dense"]


@pytest.mark.parametrize(("how", "names"), [("sd", ["gradient-sd"]), ("md", ["gradient-md"]), ("ec", ["gradient-1", "gradient-2"])])
def test_several_sources(how: str, names: list[str], folder: Path) -> None:
    other = write_text(folder / "other.conllu", 5, 9)
    options = replace(SOME, counts=(2,), controls=(), combine=how)
    summary = run(folder, options, sources=(str(folder / "dev.conllu"), other))
    assert [order["order"] for order in summary["orders"]] == names
    assert summary["best"]["order"] in names
    several = [np.load(folder / "out" / f"gradient-{i}" / "scores.npy") for i in (1, 2)]
    assert not np.array_equal(*several)
    if how == "sd":
        assert np.allclose(np.load(folder / "out" / "gradient-sd" / "scores.npy"), several[0] + several[1])


def test_wrong_trials(folder: Path) -> None:
    for options, says in (
        (TrialOptions(counts=(6,)), "ascending numbers from 1 to 5"),
        (TrialOptions(counts=(3, 1)), "ascending numbers"),
        (TrialOptions(counts=(1,), combine="xx"), "sd, ec|md, sd, ec"),
        (TrialOptions(counts=(1,), start="nowhere"), "pretrained, fine-tuned"),
        (TrialOptions(counts=(1,), controls=("odd",)), "random, highest"),
        (TrialOptions(counts=(1,), ranking=RankOptions("lrp")), "gradient, michel"),
    ):
        with pytest.raises(InputError, match=says):
            run(folder, options)
    language_model, _ = read_source(gpt2().write(folder / "gpt2"))
    with pytest.raises(Unsupported, match="a bidirectional layer"):
        files = Files([str(folder / "train.conllu")], [str(folder / "dev.conllu")])
        run_trials(language_model, folder / "out", files, DataOptions(), replace(SOME, counts=(1,)))
    write_text(folder / "dev.conllu", 3, name="D")
    with pytest.raises(InputError, match=r"dev.conllu:1: expected a label of the model"):
        run(folder, SOME)
    assert not (folder / "out").exists()
    last = "\n".join(["1\tw1\t_\tD1" + "\t_" * 6, "", ""])
    with open(folder / "train.conllu", "a") as train:  # a label beyond the limit is a label of the task
        train.write("".join(last.replace("D1", f"D{label}") for label in range(4)))
    assert len(run(folder, replace(SOME, counts=(1,), controls=(), limits=(8, None, None)))["settings"]["labels"]) == 8


def test_the_verb(folder: Path) -> None:
    model = folder / "model"
    checkpoints.save(random_model(), model)
    files = ("--train", folder / "train.conllu", "--dev", folder / "dev.conllu")
    settings = ("--counts", "1-2,4", "--epochs", 1, "--rate", 0.02, "--batch", 4, "--control", "random")
    done = headcount("prune", "trials", model, folder / "out", *files, *settings)
    assert done.status == 0, done.err
    assert done.out.count("gradient ") == 4 and done.out.count("random") == 3 and done.out.count("← best on dev") == 2
    assert (folder / "out" / "score.png").read_bytes()[:4] == b"\x89PNG"
    done = headcount("prune", "trials", model, folder / "out", *files, *settings, "--json", "--no-picture")
    assert done.status == 0 and len(json.loads(done.out)["orders"]) == 2
    assert headcount("prune", "trials", model, folder / "out", *files, "--counts", "x").status == 2
    assert headcount("prune", "trials", model, folder / "out", *files, "--counts", "9").status == 1
    wide = folder / "wide.conllu"
    wide.write_text((folder / "dev.conllu").read_text(encoding="utf-8"), encoding="utf-16")
    done = headcount("prune", "rank", model, folder / "ranked", "--data", wide, "--encoding", "utf-16", "--quiet")
    assert (done.status, done.err) == (0, "")
    files = ("--train", wide, "--dev", wide, "--counts", "1", "--encoding")
    assert "wide.conllu:1: expected text in UTF-8" in headcount("prune", "trials", model, folder / "no", *files, "utf-8").err
    assert headcount("prune", "trials", model, folder / "no", *files, "utf-16", "--epochs", 1, "--no-picture").status == 0
