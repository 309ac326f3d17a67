"""Embedding and softmax of Transformer-XL: clusters in reverse order that read the projected state, or one table for all with div_val 1.

Source: AdaptiveEmbedding and ProjectedAdaptiveLogSoftmax of kimiyoung/transformer-xl (arXiv 1901.02860).
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from engine.formats.base import Settings, SourceTensors
from engine.formats.vocabulary import ClusterEntries, InputRows, OutputRows, cluster_sizes, same

Sides = tuple[list[InputRows], list[OutputRows], ClusterEntries | None]


def read_vocabulary(source: SourceTensors, settings: Settings, hidden: int) -> Sides:
    """Take every vocabulary tensor: several tables (div_val > 1), or one, its output rows split at the cutoffs."""
    tables = max(map(source.count, ("word_emb.emb_layers.", "word_emb.emb_projs.", "crit.out_layers.")))
    projected = tables > 1 or "word_emb.emb_projs.0" in source or "crit.out_projs.0" in source
    inputs = [_input(source, index, hidden, projected) for index in range(max(tables, 1))]
    outputs = _own_tables(source, settings, inputs, hidden) if tables > 1 else _one_table(source, settings, inputs[0], hidden)
    entries = None
    if len(outputs) > 1:
        width = inputs[0].rows.shape[1]
        rows = source.take("crit.cluster_weight", (len(outputs) - 1, width))
        bias = source.take("crit.cluster_bias", (len(outputs) - 1,))
        entries = ClusterEntries(rows, bias, order="descending", cluster_input="projected")
    settings.agree("n_token", sum(len(given.rows) for given in inputs), "rows of the embedding")
    settings.agree("d_embed", inputs[0].rows.shape[1], "width of the first cluster")
    _check_ties(settings, inputs, outputs)
    return inputs, outputs, entries


def _input(source: SourceTensors, index: int, hidden: int, projected: bool) -> InputRows:
    places = [f"word_emb.emb_layers.{index}.weight", f"crit.out_layers.{index}.weight"]
    size = source.size(f"tokens of cluster {index}", [(place, 2, 0) for place in places])
    width = source.size(f"width of cluster {index}", [(place, 2, 1) for place in places])
    rows = source.take(places[0], (size, width))
    return InputRows(rows, source.take(f"word_emb.emb_projs.{index}", (hidden, width)) if projected or width != hidden else None)


def _own_tables(source: SourceTensors, settings: Settings, inputs: list[InputRows], hidden: int) -> list[OutputRows]:
    """div_val > 1: an output table and a projection for each cluster, the first included."""
    sizes, widths = [len(given.rows) for given in inputs], [given.rows.shape[1] for given in inputs]
    settings.agree("cutoffs", list(accumulate(sizes[:-1])), "the clusters of the file")
    if settings.has("div_val"):
        div_val = settings.integer("div_val", least=1)
        expected = [widths[0] // div_val**index for index in range(len(widths))]
        if expected != widths:
            settings.problem("div_val", f"one that gives the clusters' widths {widths}", f"{div_val}, which gives {expected}")
    outputs = []
    for index, (size, width) in enumerate(zip(sizes, widths, strict=True)):
        rows = source.take(f"crit.out_layers.{index}.weight", (size, width))
        bias = source.take(f"crit.out_layers.{index}.bias", (size,))
        outputs.append(OutputRows(rows, bias, source.take(f"crit.out_projs.{index}", (hidden, width))))
    return outputs


def _one_table(source: SourceTensors, settings: Settings, given: InputRows, hidden: int) -> list[OutputRows]:
    """One table: div_val 1, split at the cutoffs where the file has cluster entries; or div_val > 1 without cutoffs, then projected."""
    vocab, width = given.rows.shape
    rows, bias = source.take("crit.out_layers.0.weight", (vocab, width)), source.take("crit.out_layers.0.bias", (vocab,))
    cutoffs = _cutoffs(source, settings, vocab)
    if cutoffs or given.projection is None:
        settings.agree("div_val", 1, "one table, as the file has it")
    else:
        settings.used.add("div_val")
    outputs, start = [], 0
    for index, size in enumerate(cluster_sizes(cutoffs, vocab)):
        stop = start + size
        projection = None if given.projection is None else source.take(f"crit.out_projs.{index}", (hidden, width))
        outputs.append(OutputRows(rows[start:stop], bias[start:stop], projection))
        start = stop
    return outputs


def _cutoffs(source: SourceTensors, settings: Settings, vocab: int) -> list[int]:
    """The file tells only their number."""
    if "crit.cluster_weight" not in source and "crit.cluster_bias" not in source:
        settings.agree("cutoffs", [], "the file has no cluster entries")
        return []
    number = source.size("the number of cutoffs", [("crit.cluster_weight", 2, 0), ("crit.cluster_bias", 1, 0)])
    cutoffs = settings.integers("cutoffs")
    if len(cutoffs) != number or any(size < 1 for size in cluster_sizes(cutoffs, vocab)):
        if settings.has("cutoffs"):
            settings.problem("cutoffs", f"{number} ascending numbers between 0 and {vocab}", str(cutoffs)[:60])
        cutoffs = []
    if not cutoffs:  # a problem by now: let the entries count as seen
        source.ignore("crit.cluster_weight")
        source.ignore("crit.cluster_bias")
        for index in range(1, number + 1):
            source.ignore(f"crit.out_projs.{index}")
    return cutoffs


def _check_ties(settings: Settings, inputs: list[InputRows], outputs: list[OutputRows]) -> None:
    """The output side is read from crit; a configuration that calls differing tensors tied contradicts the file."""
    if settings.has("tie_weight") and settings.boolean("tie_weight"):
        tables = [given.rows for given in inputs]
        if len(tables) == 1:
            tables = np.split(tables[0], list(accumulate(len(output.rows) for output in outputs))[:-1])
        if not all(same(rows, output.rows) for rows, output in zip(tables, outputs, strict=True)):
            settings.problem("tie_weight", "false: embedding and output rows of the file differ", "true")
    ties = settings.value("tie_projs")
    if ties is None:
        return
    if not isinstance(ties, list) or not all(isinstance(tie, bool) for tie in ties):
        settings.problem("tie_projs", "a list of true and false", repr(ties)[:60])
        return
    for index, (tie, output) in enumerate(zip(ties, outputs, strict=False)):
        of_input = inputs[index if len(inputs) > 1 else 0].projection
        if tie and output.projection is not None and not same(output.projection, of_input):
            settings.problem(f"tie_projs[{index}]", "false: the two projections of the file differ", "true")
