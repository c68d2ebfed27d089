"""Finds the labelled messages that are most like a new one, to show them to the model as examples.

The likeness is the cosine of TF-IDF vectors over words and over groups of three and four letters (these forgive typing
errors and endings). A pool message is indexed together with its summary and its fine category. The tool gives no
verdict: the classification is the model's. Standard library only; the pool of 204 messages is indexed at each
call, in a few hundredths of a second, because every call runs in a fresh sandbox.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

POOL = Path(__file__).with_name("pool.jsonl")

# Words that say nothing about the subject. Chosen once, by eye; not tuned.
_SILENT = """a an the i my me is it to of and do does can you your in for on at if be what how when why have has are was
that this there with am im i'm"""
STOP = frozenset(_SILENT.split())
GROUP_WEIGHT = 0.5  # of a letter group against a word; this and the indexed fields by leave-one-out on the pool


@cache
def groups(word: str) -> tuple[str, ...]:
    framed = f"^{word}$"
    return tuple(framed[start : start + size] for size in (3, 4) for start in range(len(framed) - size + 1))


def features(text: str) -> dict[str, float]:
    """Words and letter groups with their weights: 1 + log of the count, or the bare weight of a single group."""
    words = re.findall(r"[a-z0-9']+", text.lower().replace("top-up", "topup").replace("top up", "topup"))
    words = [word for word in words if word not in STOP]
    counts = dict.fromkeys(chain.from_iterable(map(groups, words)), 0.0)
    for name in chain.from_iterable(map(groups, words)):
        counts[name] += GROUP_WEIGHT
    for word in words:
        counts[f"w:{word}"] = counts.get(f"w:{word}", 0.0) + 1
    return {name: count if count < 1 else 1 + math.log(count) for name, count in counts.items()}


def rank(text: str, pool: list[dict[str, Any]]) -> list[tuple[float, dict[str, Any]]]:
    """The pool by likeness to `text`, the nearest first."""
    documents = [
        features(f"{row['text']} {row['summary']} {re.sub(r'[^a-zA-Z]+', ' ', row['category'])}") for row in pool
    ]
    frequency = Counter(chain.from_iterable(documents))
    rarity = {name: math.log((len(pool) + 1) / (count + 0.5)) for name, count in frequency.items()}
    query = {name: weight * rarity[name] for name, weight in features(text).items() if name in rarity}
    length = math.hypot(*query.values()) or 1.0
    scored = []
    for row, document in zip(pool, documents, strict=True):
        shared = query.keys() & document.keys()
        score = 0.0
        if shared:
            norm = math.sqrt(sum((weight * rarity[name]) ** 2 for name, weight in document.items()))
            score = math.fsum(query[name] * document[name] * rarity[name] for name in shared) / (length * norm)
        scored.append((score, row))
    return sorted(scored, key=lambda pair: (-pair[0], pair[1]["id"]))


def run(text: str, k: int = 4) -> dict[str, Any]:
    """The `k` nearest examples (1 to 12), the nearest last: a small model leans on what it read last.

    Each has id, text, label, similarity (0 to 1) and `answer`: the JSON text that the model would have had to write.
    """
    if not 1 <= k <= 12:
        raise ValueError(f"k must be from 1 to 12, not {k}.")
    pool = [json.loads(line) for line in POOL.read_text(encoding="utf-8").splitlines()]
    return {"examples": [example(score, row) for score, row in reversed(rank(text, pool)[:k])]}


def example(score: float, row: dict[str, Any]) -> dict[str, Any]:
    # The summary comes before the flag: a small model decides better about what it has just put into words.
    answer = {"category": row["label"], **{name: row[name] for name in ("summary", "urgency", "wants_refund")}}
    return {
        "id": row["id"],
        "text": row["text"],
        "label": row["label"],
        "similarity": round(score, 4),
        "answer": json.dumps(answer, separators=(",", ":"), ensure_ascii=False),
    }
