"""The loaded model: score, generate, stream or encode through one Runner, from as many threads as one likes."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, overload

import numpy as np

from engine import checkpoint as checkpoints
from engine.backends.runner import Runner
from engine.checkpoint import Checkpoint
from engine.checkpoint.tokenizer import Tokenizer
from engine.errors import InputError, Problem, Unsupported
from engine.runtime import encoding, generation, scoring
from engine.runtime.executor import CHUNK, Executor
from engine.runtime.inputs import is_batch, prompt_row, rectangle, token_rows
from engine.runtime.options import GenerationOptions, generation_options, takes_options
from engine.runtime.scoring import Progress, Score
from engine.runtime.sequence import Completion, Generation, Token
from engine.spec import ModelSpec
from engine.spec.cost import Cost, model_cost


@dataclass(frozen=True)
class Explanation:
    """What runs a model and why: the backend chosen, those refused with their reasons, and what the runner says of itself.

    notes: what was guessed or not used in reading a source, one line each.
    """

    path: str
    backend: str
    refusals: tuple[tuple[str, str], ...]  # (backend, reason), in the order of preference
    dtype: str
    dtype_reason: str
    device: str
    quantization: str | None
    runner: dict[str, Any]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"refusals": [{"backend": name, "reason": reason} for name, reason in self.refusals]}

    def __str__(self) -> str:
        numbers = self.dtype if self.quantization is None else f"{self.dtype}, quantization {self.quantization}"
        lines = [f"{self.path}: backend {self.backend}, dtype {numbers} ({self.dtype_reason}), device {self.device}"]
        lines += [f"  {name} refused: {reason}" for name, reason in self.refusals]
        lines += [f"  {name}: {value}" for name, value in self.runner.items()]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


class Model:
    """A model ready to run; made by engine.load. A context manager; close() lets its memory go."""

    def __init__(self, checkpoint: Checkpoint, runner: Runner, tokenizer: Tokenizer | None, explanation: Explanation) -> None:
        self.spec: ModelSpec = checkpoint.spec
        self.tokenizer = tokenizer
        self._checkpoint: Checkpoint | None = checkpoint
        self._runner: Runner | None = runner
        self._executor = Executor(runner)
        self._explanation = explanation

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let weights and caches go, after the step that may be running; every later call raises InputError. Closing twice is fine."""
        self._executor.close()
        self._runner = self._checkpoint = None

    def explain(self) -> Explanation:
        """The backend, why it was chosen, and what it has run so far; print it, or take to_dict()."""
        return self._explanation if self._runner is None else replace(self._explanation, runner=self._runner.describe())

    def cost(self, **settings: Any) -> Cost:
        """FLOPs, parameters and bytes, as engine.spec.cost.model_cost; dtype and quantization are the model's own unless given."""
        own = {"dtype": self._explanation.dtype, "quantization": self._explanation.quantization}
        return model_cost(self.spec, **{**own, **settings})

    def save(self, directory: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write the model as an engine directory: the source's own numbers, whatever dtype it runs in."""
        self._executor.check_open()
        assert self._checkpoint is not None
        checkpoints.save(self._checkpoint, directory, force=force)

    def log_probs(self, ids: Any, *, progress: Progress | None = None) -> np.ndarray:
        """ids [B, T] integers → float32 [B, T, vocab]: row t is log p(next | ids[:, :t+1]), each sequence from the start of a stream.

        Raises InputError for ids that are none, and above 2 GiB of result: score gives the tokens' own.
        """
        self._require_language_model("log_probs")
        rows = rectangle(ids, self.spec.vocab)
        self._require_positions([rows[0]], "ids")
        return scoring.log_probs(self._executor, rows, progress)

    def score(self, ids: Any, *, segment: int | None = None, stride: int | None = None, progress: Progress | None = None) -> Score:
        """ids [B, T], or B lists of any length → Score(token_nll [B, T-1], mean, ppl), in nats; mean is over all tokens.

        token_nll[:, t] = -log p(ids[:, t+1] | ids[:, :t+1]); NaN past each end. segment: tokens fed at a time, which changes no result.
        stride: windows of as many tokens as the model has positions start `stride` tokens apart, and a token is predicted from those
        before it in the first window that holds it. Without it a sequence longer than the positions raises InputError.
        """
        self._require_language_model("score")
        if segment is not None and (isinstance(segment, bool) or not isinstance(segment, int) or segment < 1):
            raise InputError(Problem("segment", "an integer of at least 1, or None", repr(segment)))
        rows = token_rows(ids, self.spec.vocab)
        if stride is None:
            hint = "stride=N (headcount score --stride N) scores longer texts in windows"
            self._require_positions([row[:-1] for row in rows], "ids", hint)  # the last token is only predicted
        return scoring.score(self._executor, rows, segment or CHUNK, progress, self._window(stride))

    @overload
    def generate(self, prompt: str, **options: Any) -> Completion: ...
    @overload
    def generate(self, prompt: list[str], **options: Any) -> list[Completion]: ...
    @overload
    def generate(self, prompt: Any, **options: Any) -> Any: ...
    @takes_options
    def generate(self, prompt: Any, **options: Any) -> Any:
        """Continue a prompt, text or token ids → Completion(ids, text, logprobs, finish_reason); a batch of prompts gives a list.

        temperature 0 is greedy. stop: texts, token ids, or a list of both; no token ends a text by itself. logprobs: alternatives kept per
        token. A draw depends on the seed and the token's index alone, never on what runs beside it; without a seed one is drawn and kept in
        the Completion. A model with positions ends where they do, finish_reason "length". Raises InputError for anything wrong in the
        prompt or the options.
        """
        checked = self._options(options)
        several = is_batch(prompt)
        prompts = [(f"prompt[{i}]", p) for i, p in enumerate(prompt)] if several else [("prompt", prompt)]
        generations = [self._start(p, where, checked) for where, p in prompts]
        for _ in generation.generate(self._executor, generations):
            pass
        completions = [g.completion() for g in generations]
        return completions if several else completions[0]

    @takes_options
    def stream(self, prompt: Any, **options: Any) -> Generator[Token, None, None]:
        """As generate for one prompt, token by token as they come: Token(id, text, logprob). Texts joined are generate's text.

        Closing the iterator early frees its cache.
        """
        checked = self._options(options)
        if is_batch(prompt):
            raise InputError(Problem("prompt", "one prompt", "several"), hint="generate takes a batch")
        return self._tokens(self._start(prompt, "prompt", checked))

    def trace(self, ids: Any) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
        """One sequence ids [T], a part at a time: residual stream [rows, hidden] after embedding and each layer; log p [rows, vocab]."""
        self._require_language_model("trace")
        row = prompt_row(ids, "ids", self.spec.vocab)
        self._require_positions([row], "ids")
        return scoring.trace(self._executor, row)

    def encode(
        self,
        ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        *,
        pooling: str | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """ids [B, T], or B lists of any length → the last hidden states float32 [B, T, hidden], zeros where the mask hides a token.

        attention_mask, token_type_ids: of the same lengths as ids; by default every token is seen, of type 0. pooling: "mean" over the
        tokens seen or "cls", the first of them → [B, hidden]. Hidden tokens are not computed. Raises InputError, also for a language model.
        """
        if pooling not in (None, "mean", "cls"):
            raise InputError(Problem("pooling", "None, mean or cls", repr(pooling)))
        sequences, length = self._visible(ids, attention_mask, token_type_ids, "encode")
        hidden = encoding.encode(self._executor, sequences, length, "hidden", progress)
        return hidden if pooling is None else encoding.pooled(hidden, sequences, pooling)

    def logits(self, ids: Any, attention_mask: Any = None, token_type_ids: Any = None, *, progress: Progress | None = None) -> np.ndarray:
        """What the task head gives, arguments as encode: float32 [B, T, labels], [B, labels] of a sequence classifier, [B, T, vocab] of a
        masked language model. Raises InputError, also where the model has no task head.
        """
        if self.spec.task == "hidden":
            found = 'none: task "hidden"'
            raise InputError(Problem("logits", "a model with a task head", found), hint="encode(ids) gives its hidden states")
        sequences, length = self._visible(ids, attention_mask, token_type_ids, "logits")
        return encoding.encode(self._executor, sequences, length, "logits", progress)

    def trace_encoder(self, ids: Any) -> tuple[list[np.ndarray], np.ndarray]:
        """As trace for an encoder: residual stream [rows, hidden] after embedding and each layer; logits, without a head hidden states."""
        sequences, _ = self._visible([ids], None, None, "trace_encoder")
        return encoding.trace(self._executor, sequences[0])

    def forward(self, ids: Any, attention_mask: Any = None, token_type_ids: Any = None) -> Any:
        """log_probs as the backend's own tensor [B, T, vocab], on its device and whatever its size, differentiable where the backend is.

        Of an encoder, arguments and shape as logits, or as encode without a task head. Unsupported where a backend has no tensors.
        """
        self._executor.check_open()
        causal = self._executor.stack.causal
        own = getattr(self._runner, "forward" if causal else "forward_bidirectional", None)
        if not causal:
            sequences, length = self._visible(ids, attention_mask, token_type_ids, "forward")
        else:
            given = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
            if foreign := [
                Problem(name, "nothing: a language model has none", "one") for name, value in given.items() if value is not None
            ]:
                raise InputError(foreign)
            rows = rectangle(ids, self.spec.vocab)
            self._require_positions([rows[0]], "ids")
        if own is None:
            raise Unsupported(Problem("forward", "a backend with tensors of its own", self._explanation.backend))
        return own(rows) if causal else encoding.forward(own, sequences, length, self._executor.stack)

    def _tokens(self, started: Generation) -> Generator[Token, None, None]:
        tokens = generation.generate(self._executor, [started])
        try:
            for _, token in tokens:
                yield token
        finally:
            tokens.close()

    def _visible(self, ids: Any, attention_mask: Any, token_type_ids: Any, call: str) -> tuple[list[encoding.Visible], int]:
        self._executor.check_open()
        if self._executor.stack.causal:
            raise InputError(Problem(call, "an encoder", f"task {self.spec.task}"), hint="log_probs, score and generate run it")
        return encoding.visible_rows(ids, attention_mask, token_type_ids, self._executor.stack)

    def _require_language_model(self, call: str) -> None:
        if self.spec.task != "causal_lm":
            ours = "encode(ids)" if self.spec.task == "hidden" else "encode(ids) and logits(ids)"
            raise InputError(Problem(call, "a causal language model", f"an encoder, task {self.spec.task}"), hint=f"{ours} run it")

    def _options(self, options: dict[str, Any]) -> GenerationOptions:
        self._executor.check_open()
        self._require_language_model("generate")
        return generation_options(options, vocab=self.spec.vocab, has_tokenizer=self.tokenizer is not None)

    def _start(self, prompt: Any, where: str, options: GenerationOptions) -> Generation:
        """A model with positions ends a text, for its length, where they do."""
        ids = self._prompt(prompt, where)
        self._require_positions([ids], where)
        most = self._executor.stack.most_rows
        room = options.max_new_tokens if most is None else min(options.max_new_tokens, most - len(ids) + 1)  # the last one is not fed
        return Generation.start(ids, replace(options, max_new_tokens=room), self.tokenizer)

    def _window(self, stride: int | None) -> tuple[int, int] | None:
        """(tokens of a window, stride) as scoring.score takes them."""
        if stride is None:
            return None
        most = self._executor.stack.most_rows
        if most is None or most < 2:
            found = "none: it reads a text of any length" if most is None else str(most)
            raise InputError(Problem("stride", "a model with two positions or more", found))
        if isinstance(stride, bool) or not isinstance(stride, int) or not 1 <= stride <= most:
            raise InputError(Problem("stride", f"an integer from 1 to {most}, the model's positions, or None", repr(stride)))
        return most, stride

    def _require_positions(self, rows: list[np.ndarray], where: str, hint: str = "cut longer texts into parts") -> None:
        most = self._executor.stack.most_rows
        longest = max(range(len(rows)), key=lambda index: len(rows[index]))
        if most is not None and len(rows[longest]) > most:
            place = f"{where}[{longest}]" if where == "ids" and len(rows) > 1 else where
            problem = Problem(place, f"at most {most} tokens, the model's positions", str(len(rows[longest])))
            raise InputError(problem, hint=hint)

    def _prompt(self, prompt: Any, where: str) -> np.ndarray:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise InputError(Problem(where, "token ids, for this model has no tokenizer", "text"))
            prompt = self.tokenizer.encode(prompt)
        return prompt_row(prompt, where, self.spec.vocab)
