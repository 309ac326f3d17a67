"""The description of a whole model: the layers, its two ends, and what they imply and must keep."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.errors import Problem, SpecMismatch
from engine.spec.check import spec_problems
from engine.spec.fields import from_json, to_json
from engine.spec.tensors import Shapes, tensors_of
from engine.spec.types import FORMAT_VERSION, Embedding, Labels, LayerSpec, Task, Vocabulary


@dataclass(frozen=True)
class ModelSpec:
    """A whole model. `tensors()` is every tensor a checkpoint of it must hold, and no other."""

    hidden: int
    vocab: int
    layers: tuple[LayerSpec, ...]
    embedding: Embedding
    head: Vocabulary | Labels | None
    task: Task
    final_norm: bool = False
    version: int = FORMAT_VERSION

    def to_dict(self) -> dict[str, object]:
        result: dict[str, object] = to_json(self)
        return result

    @staticmethod
    def from_dict(value: object, *, source: str | None = None) -> ModelSpec:
        """Read the JSON form; raises SpecMismatch with every unknown, missing, ill-typed or contradictory field."""
        problems: list[Problem] = []
        spec = from_json(ModelSpec, value, "spec", problems)
        if spec is not None:
            problems.extend(spec.problems())
        if spec is None or problems:
            raise SpecMismatch(problems, source=source)
        return spec

    def check(self, *, source: str | None = None) -> ModelSpec:
        """Return self; raises SpecMismatch with every contradiction."""
        if problems := self.problems():
            raise SpecMismatch(problems, source=source)
        return self

    def problems(self) -> list[Problem]:
        return list(spec_problems(self))

    def with_kept(self, kept: tuple[tuple[int, ...], ...]) -> ModelSpec:
        """The same model with other head numbers per layer; identity key/value heads only."""
        layers = tuple(
            replace(layer, attention=replace(layer.attention, kept=k, kv_of=tuple(range(len(k)))))
            for layer, k in zip(self.layers, kept, strict=True)
        )
        return replace(self, layers=layers)

    def tensors(self) -> Shapes:
        """Name → shape, in the order of execution."""
        return tensors_of(self)

    def tied_source(self, cluster: int) -> tuple[str, int, int]:
        """The embedding tensor and its row range [start, stop) that a tied output cluster reads."""
        assert isinstance(self.head, Vocabulary)
        first = sum(c.size for c in self.head.clusters[:cluster])
        start = 0
        for index, c in enumerate(self.embedding.clusters):
            if start <= first < start + c.size:
                return f"embedding.{index}", first - start, first - start + self.head.clusters[cluster].size
            start += c.size
        raise AssertionError("checked by spec_check: clusters cover the vocabulary")

    def note(self, tensor: str) -> str:
        """Why a tensor has the shape it has, for error texts: '5 kept heads × 64'; empty when nothing needs saying."""
        parts = tensor.split(".")
        if len(parts) < 4 or parts[2] != "attention" or parts[3] in ("output_bias",):
            return ""
        a = self.layers[int(parts[1])].attention
        return f"{a.heads} kept heads × {a.head_dim}"
