"""What each kernel may use: about a tenth above what it took when it was written.

Of the figures of all targets and dtypes the largest counts. A row of the table is for one class of
vocabulary, or for all of them. Main loops that a call hardly ever enters, or that read a short row,
have no budget of instructions. Sampling from three sources on the base's nucleus may never take
more than 60 instructions for an entry, and greedily 30, however rows are aligned.

Compilers differ: the figures are those of Triton 3.9, and where another version takes much more or
much less, it has rows of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """What a kernel may use.

    Args:
        registers: of a thread.
        shared: bytes of shared memory.
        load: bytes that the narrowest load in the main loop takes at least.
        instructions: in the main loop for one vocabulary entry.
    """

    registers: int
    shared: int
    load: int = 0
    instructions: float = math.inf


BUDGETS: dict[tuple[str, str], Budget] = {
    ("gumbel.sweep", "even"): Budget(56, 64, load=16, instructions=39),
    ("gumbel.merge", "any"): Budget(24, 64),
    ("row_lse.sweep", "even"): Budget(36, 64, load=16, instructions=10),
    ("row_lse.merge", "any"): Budget(24, 64),
    ("sweep K=3 top-p", "even"): Budget(80, 128, load=16, instructions=58),
    ("merge K=3 top-p", "any"): Budget(36, 64),
    ("check K=3 top-p", "even"): Budget(44, 64, load=16, instructions=37.5),
    ("sweep K=3 greedy", "even"): Budget(64, 128, load=16, instructions=22),
    ("merge K=3 greedy", "any"): Budget(36, 64),
    ("check K=3 greedy", "even"): Budget(72, 64, load=16, instructions=40),
    ("sweep K=1 own top-p", "even"): Budget(72, 128, load=16, instructions=53),
    ("merge K=1 own top-p", "any"): Budget(36, 64),
    ("check K=1 own top-p", "even"): Budget(52, 64, load=16, instructions=44),
    ("row_lse.sweep K=3", "even"): Budget(36, 64, load=16, instructions=10.5),
    ("threshold.ladder", "even"): Budget(80, 64, load=16, instructions=57.5),
    ("threshold.edge", "even"): Budget(40, 64, load=16, instructions=14.5),
    ("threshold.settle", "even"): Budget(76, 128),
    ("scores.write", "even"): Budget(52, 9024, load=16, instructions=28.5),
    ("topk.sweep", "even"): Budget(28, 2304, load=16, instructions=8.5),
    ("topk.narrow", "any"): Budget(64, 1152),
    ("topk.pick", "any"): Budget(72, 72128),
    ("topk.arrange", "any"): Budget(44, 2304),
    ("candidate.choose", "any"): Budget(36, 64),
    ("spec.weigh", "even"): Budget(40, 64, load=16, instructions=13.5),
    ("spec.accept", "any"): Budget(56, 192),
    ("spec.draw", "even"): Budget(72, 64, load=16, instructions=58.5),
    ("spec.follow", "any"): Budget(60, 64),
    ("gumbel.sweep", "padded"): Budget(64, 64, load=16, instructions=42),
    ("row_lse.sweep", "padded"): Budget(32, 64, load=16, instructions=13),
    ("sweep K=3 top-p", "padded"): Budget(88, 128, load=16, instructions=58),
    ("check K=3 top-p", "padded"): Budget(44, 64, load=16, instructions=42),
    ("sweep K=3 greedy", "padded"): Budget(68, 128, load=16, instructions=22),
    ("check K=3 greedy", "padded"): Budget(44, 64, load=16, instructions=33),
    ("sweep K=1 own top-p", "padded"): Budget(72, 128, load=16, instructions=53),
    ("check K=1 own top-p", "padded"): Budget(44, 64, load=16, instructions=46),
    ("row_lse.sweep K=3", "padded"): Budget(36, 64, load=16, instructions=14),
    ("threshold.ladder", "padded"): Budget(104, 64, load=16, instructions=60.5),
    ("threshold.edge", "padded"): Budget(44, 64, load=16, instructions=17.5),
    ("threshold.settle", "padded"): Budget(84, 128),
    ("scores.write", "padded"): Budget(60, 9024, load=16, instructions=31.5),
    ("topk.sweep", "padded"): Budget(32, 2304, load=16, instructions=11.5),
    ("spec.weigh", "padded"): Budget(40, 64, load=16, instructions=16),
    ("spec.draw", "padded"): Budget(72, 64, load=16, instructions=61.5),
    ("gumbel.sweep", "odd"): Budget(56, 64, instructions=43),
    ("row_lse.sweep", "odd"): Budget(36, 64, instructions=13.5),
    ("sweep K=3 top-p", "odd"): Budget(88, 128, instructions=60),
    ("check K=3 top-p", "odd"): Budget(48, 64, instructions=39.5),
    ("sweep K=3 greedy", "odd"): Budget(68, 128, instructions=26),
    ("check K=3 greedy", "odd"): Budget(44, 64, instructions=33),
    ("sweep K=1 own top-p", "odd"): Budget(72, 128, instructions=54.5),
    ("check K=1 own top-p", "odd"): Budget(44, 64, instructions=45),
    ("row_lse.sweep K=3", "odd"): Budget(32, 64, instructions=14.5),
    ("threshold.ladder", "odd"): Budget(84, 64, instructions=59),
    ("threshold.edge", "odd"): Budget(40, 64, instructions=17.5),
    ("threshold.settle", "odd"): Budget(76, 128),
    ("scores.write", "odd"): Budget(52, 9024, instructions=35),
    ("topk.sweep", "odd"): Budget(28, 576, instructions=11),
    ("spec.weigh", "odd"): Budget(44, 64, instructions=15.5),
    ("spec.draw", "odd"): Budget(68, 64, instructions=65.5),
    ("scores.normalise", "even"): Budget(32, 64, instructions=8.5),
    ("scores.normalise", "padded"): Budget(32, 64, instructions=8.5),
    ("scores.normalise", "odd"): Budget(32, 64, instructions=8.5),
    ("check K=3 both", "even"): Budget(68, 64, load=16, instructions=20.5),
    ("check K=3 both", "odd"): Budget(72, 64, instructions=21),
    ("check K=3 both", "padded"): Budget(72, 64, load=16, instructions=22),
    ("finish K=1 own top-p", "even"): Budget(116, 128),
    ("finish K=1 own top-p", "odd"): Budget(124, 128),
    ("finish K=1 own top-p", "padded"): Budget(120, 128),
    ("finish K=3 both", "even"): Budget(124, 128),
    ("finish K=3 both", "odd"): Budget(132, 128),
    ("finish K=3 both", "padded"): Budget(132, 128),
    ("finish K=3 greedy", "even"): Budget(88, 128),
    ("finish K=3 greedy", "odd"): Budget(100, 128),
    ("finish K=3 greedy", "padded"): Budget(88, 128),
    ("finish K=3 top-p", "even"): Budget(132, 128),
    ("finish K=3 top-p", "odd"): Budget(136, 128),
    ("finish K=3 top-p", "padded"): Budget(132, 128),
    ("finish debias", "even"): Budget(148, 128),
    ("finish debias", "odd"): Budget(160, 128),
    ("finish debias", "padded"): Budget(152, 128),
    ("merge K=3 both", "any"): Budget(36, 64),
    ("scores.write kept", "even"): Budget(56, 9024, load=16, instructions=35),
    ("scores.write kept", "odd"): Budget(60, 9024, instructions=40.5),
    ("scores.write kept", "padded"): Budget(56, 9024, load=16, instructions=37),
    ("sweep K=3 both", "even"): Budget(80, 128, load=16, instructions=65.5),
    ("sweep K=3 both", "odd"): Budget(104, 128, instructions=70),
    ("sweep K=3 both", "padded"): Budget(84, 128, load=16, instructions=65.5),
    ("sweep debias", "even"): Budget(128, 128, load=16, instructions=83),
    ("sweep debias", "odd"): Budget(128, 128, instructions=86),
    ("sweep debias", "padded"): Budget(128, 128, load=16, instructions=83),
    ("threshold.edge joint", "even"): Budget(40, 64, load=16, instructions=14.5),
    ("threshold.edge joint", "odd"): Budget(40, 64, instructions=17.5),
    ("threshold.edge joint", "padded"): Budget(44, 64, load=16, instructions=17.5),
    ("threshold.first", "even"): Budget(60, 64, load=16, instructions=57.5),
    ("threshold.first", "odd"): Budget(72, 64, instructions=59),
    ("threshold.first", "padded"): Budget(72, 64, load=16, instructions=60.5),
    ("threshold.first joint", "even"): Budget(80, 64, load=16, instructions=73),
    ("threshold.first joint", "odd"): Budget(100, 64, instructions=77.5),
    ("threshold.first joint", "padded"): Budget(80, 64, load=16, instructions=75),
    ("threshold.ladder joint", "even"): Budget(84, 64, load=16, instructions=74),
    ("threshold.ladder joint", "odd"): Budget(88, 64, instructions=79.5),
    ("threshold.ladder joint", "padded"): Budget(84, 64, load=16, instructions=77),
    ("threshold.settle joint", "even"): Budget(76, 128),
    ("threshold.settle joint", "odd"): Budget(76, 128),
    ("threshold.settle joint", "padded"): Budget(84, 128),
    ("group_lora", "any"): Budget(88, 18432, load=16, instructions=3.7),
    ("group_lora odd", "any"): Budget(108, 14336, load=2, instructions=7),
    ("group_lora float32", "any"): Budget(170, 18432, load=16, instructions=35),
    ("group_lora odd float32", "any"): Budget(202, 18432, load=4, instructions=39),
    ("projection.solve J=2", "any"): Budget(255, 256),
    ("projection.solve J=4", "any"): Budget(255, 2304),
}

# By version of Triton. 3.6 sums a ladder's pivots in half the instructions, and scans through
# shared memory. Its figures are of sm_90.
BY_TRITON: dict[str, dict[tuple[str, str], Budget]] = {
    "3.6": {
        ("check K=3 greedy", "padded"): Budget(36, 64, load=16, instructions=44.5),
        ("threshold.edge joint", "odd"): Budget(56, 64, instructions=17.5),
        ("threshold.first joint", "even"): Budget(72, 64, load=16, instructions=51),
        ("threshold.first joint", "odd"): Budget(84, 64, instructions=53.5),
        ("threshold.first joint", "padded"): Budget(80, 64, load=16, instructions=54),
        ("threshold.first", "even"): Budget(72, 64, load=16, instructions=33.5),
        ("threshold.first", "odd"): Budget(52, 64, instructions=36),
        ("threshold.first", "padded"): Budget(56, 64, load=16, instructions=36.5),
        ("threshold.ladder joint", "even"): Budget(84, 64, load=16, instructions=51),
        ("threshold.ladder joint", "odd"): Budget(88, 64, instructions=54),
        ("threshold.ladder joint", "padded"): Budget(84, 64, load=16, instructions=54),
        ("threshold.ladder", "even"): Budget(72, 64, load=16, instructions=33),
        ("threshold.ladder", "odd"): Budget(104, 64, instructions=36.5),
        ("threshold.ladder", "padded"): Budget(80, 64, load=16, instructions=36.5),
        ("threshold.settle joint", "odd"): Budget(72, 4544),
        ("threshold.settle", "odd"): Budget(72, 4544),
        ("topk.narrow", "any"): Budget(64, 36096),
        ("topk.pick", "any"): Budget(88, 72128),
    }
}


def budget_of(kernel: str, kind: str, triton: str) -> Budget:
    """The budget of a kernel for a class of vocabulary, as ``triton``, a version, compiles it."""
    budgets = BUDGETS | BY_TRITON.get(".".join(triton.split(".")[:2]), {})
    return budgets.get((kernel, kind)) or budgets[kernel, "any"]
