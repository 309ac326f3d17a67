"""`python -m bench encoder`: a dense and a pruned encoder through our engine and every other: the gate, then the clock, then rows.

Work: `one` text, and a `ragged` batch. Figures, all of the same rounds: `times_NAME` for each of our own precisions, how many times as long
as it this engine takes on the same model; `of_dense`, this engine's time on the model over its time on the dense one, and beside it
`flops_of_dense`, the same ratio of needed FLOPs; `tokens`, those that are no padding.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.core.cases import Kept
from bench.peers.base import Skipped
from bench.peers.encoder_base import EncoderEngine
from bench.peers.table import Peer
from bench.suites.cpu.bench import Item, PrunedModel, Recorder, failure, gate_of, ratio
from bench.suites.encoder import cases as encoder_cases
from bench.suites.encoder.cases import EncoderShape, Texts
from bench.suites.encoder.files import EncoderFiles
from engine.checkpoint import Checkpoint
from engine.checkpoint.surgery import mask, prune
from engine.measure.clock import bar
from engine.measure.gate import Gate
from engine.runtime.encoding import visible_rows
from engine.runtime.executor import bidirectional_batch
from engine_kernels.testing import difference, tolerance

PART = "encoder"
PLAIN_TOKENS = 16  # of the text on plain PyTorch in bfloat16, which takes seconds without instructions for it
LONGEST_CALL = 45.0  # seconds of the processor; an engine that would take more for a batch is skipped


@dataclass
class EncoderModel(PrunedModel):
    """files: the compact model as its peers read it; exact: what the masked one answers on plain PyTorch, by work."""

    files: EncoderFiles = field(kw_only=True)
    exact: dict[str, np.ndarray] = field(default_factory=dict, kw_only=True)
    narrow: list[float] = field(default_factory=list, kw_only=True)

    @staticmethod
    def cut(dense: Checkpoint, heads: Kept, folder: Path) -> EncoderModel:
        """The dense model with only those heads; its files go into a folder of their own."""
        compact = prune(dense, heads)
        compact = Checkpoint(compact.spec, dict(compact.weights), compact.provenance)  # cut once
        return EncoderModel(heads, compact, mask(dense, heads), files=EncoderFiles(compact, folder / str(sum(map(len, heads)))))

    @property
    def source(self) -> EncoderFiles:
        return self.files

    def answer(self, texts: Texts, dtype: str, threads: int) -> np.ndarray:
        """Hidden states [tokens, hidden] of the masked model on plain PyTorch."""
        runner = self.reference(dtype, threads)
        visible, _ = visible_rows(list(texts.ids), None, None, runner.stack)
        found = runner.step(bidirectional_batch([text.rows for text in visible], "hidden")).hidden
        assert found is not None
        return found


@dataclass
class EncoderBench(Recorder):
    """The work on the models of one shape."""

    shape: EncoderShape = field(kw_only=True)

    def compare(self, models: Sequence[EncoderModel], peers: Sequence[Peer], work: str) -> None:
        """Every peer at one piece of work on every model, all in the same rounds."""
        texts = encoder_cases.texts_of(self.shape, work)
        item = Item(work, PART, len(texts.ids), max(texts.lengths))
        gates: dict[tuple[int, str], Gate] = {}
        skipped: dict[tuple[int, str], str] = {}
        for model in models:
            self._gates(model, peers, item, texts, gates, skipped)
        calls = {
            (model.kept, peer.name): self._encoder(model, peer).call(texts)
            for model in models
            for peer in peers
            if (model.kept, peer.name) in gates and gates[model.kept, peer.name].passed
        }
        named = {f"{kept} {name}": call for (kept, name), call in calls.items()}
        timed = self.clock(named, dict.fromkeys(named, 1), item)
        samples = {key: timed[f"{key[0]} {key[1]}"] for key in calls}
        flops = {model.kept: encoder_cases.flops(model.compact.spec, texts.lengths) for model in models}
        flops_of_all = encoder_cases.flops(models[0].compact.spec.with_kept(self.shape.every), texts.lengths)
        for model in models:
            for peer in peers:
                key = (model.kept, peer.name)
                figures = self._figures(key, peers, samples)
                if key in samples:
                    figures |= {"tokens": texts.tokens, "flops_of_dense": flops[model.kept] / flops_of_all}
                self.add(model, peer, item, gates.get(key), samples.get(key, []), figures, skipped=skipped.get(key))

    def _gates(
        self,
        model: EncoderModel,
        peers: Sequence[Peer],
        item: Item,
        texts: Texts,
        gates: dict[tuple[int, str], Gate],
        skipped: dict[tuple[int, str], str],
    ) -> None:
        """Each peer on some of the texts against the masked model on plain PyTorch; and why some have no gate."""
        probe = some_of(texts)
        if item.work not in model.exact:
            model.exact[item.work] = model.answer(probe, "float32", self.threads)
        if not model.narrow:
            start = Texts((probe.ids[0][:PLAIN_TOKENS],))
            plain, exact = (model.answer(start, dtype, self.threads) for dtype in ("bfloat16", "float32"))
            model.narrow.append(tolerance(plain, exact, "bfloat16"))
        model.references.clear()
        with bar(f"Checking {item.work}, {model.kept} heads", len(peers), quiet=self.quiet) as advance:
            for peer in peers:
                key = (model.kept, peer.name)
                try:
                    encoder = self._encoder(model, peer)
                    begin = time.process_time()  # a busy machine is no reason
                    found = encoder.hidden(probe)
                    _refuse_slow(time.process_time() - begin, probe, texts)
                except Skipped as reason:
                    skipped[key] = str(reason)
                except Exception as error:
                    if peer.ours:
                        raise
                    skipped[key] = failure(error)
                else:
                    gates[key] = gate_of(peer, difference(found, model.exact[item.work]), model.narrow)
                advance()

    def _encoder(self, model: EncoderModel, peer: Peer) -> EncoderEngine:
        encoder: EncoderEngine = model.built(peer, self.threads)
        return encoder

    def _figures(self, key: tuple[int, str], peers: Sequence[Peer], samples: Mapping[tuple[int, str], list[float]]) -> dict[str, float]:
        if key not in samples:
            return {}
        kept, name = key
        ours = [peer.name for peer in peers if peer.ours and (kept, peer.name) in samples]
        figures = {f"times_{our}": ratio(samples[key], samples[kept, our]) for our in ours}
        dense = (self.shape.heads * self.shape.layers, name)
        return figures | ({"of_dense": ratio(samples[key], samples[dense])} if dense in samples else {})


def some_of(texts: Texts) -> Texts:
    """The longest, the shortest and the first text of a batch: as wide as the whole, at a tenth of the work."""
    lengths = np.array(texts.lengths)
    chosen = dict.fromkeys([0, int(lengths.argmin()), int(lengths.argmax())])
    return Texts(tuple(texts.ids[index] for index in chosen))


def _refuse_slow(seconds: float, probe: Texts, texts: Texts) -> None:
    """Raise Skipped where the whole batch would take too long, rectangles taken for rectangles."""
    expected = seconds * len(texts.ids) / len(probe.ids)
    if expected > LONGEST_CALL:
        raise Skipped(f"{len(probe.ids)} of the {len(texts.ids)} texts took {seconds:.1f} s of the processor")
