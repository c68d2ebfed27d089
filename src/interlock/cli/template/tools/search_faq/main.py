"""Runs in a fresh sandbox: no network, no files except its own directory (read-only, /tool) and /tmp."""

import json
import re
from pathlib import Path

FAQ = json.loads(Path(__file__).with_name("faq.json").read_text())
WORDS = re.compile(r"[a-z]+")
COMMON = set(WORDS.findall("a an and are can do does for how i in is it me my of on the to what when where you your"))


def words(text: str) -> set[str]:
    return set(WORDS.findall(text.lower())) - COMMON


def run(question: str) -> dict:
    asked = words(question)
    scored = [(len(asked & words(entry["question"] + " " + entry["answer"])), entry) for entry in FAQ]
    best = sorted((item for item in scored if item[0]), key=lambda item: -item[0])[:2]
    return {"found": len(best), "entries": [entry for _, entry in best]}
