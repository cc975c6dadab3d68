"""The plan's table and page: what they say, and that texts stay texts."""

from typing import Any

from tbd.generation import cost
from tbd.report import plan as page
from tbd.report.plan import Asked, AtTokens, Detectable, Plan, Reference, Strength
from tests.report.test_report import HOSTILE, Page

FOUND = [
    Detectable(unseen=100, mde80=0.15, low=0.11, high=None),
    Detectable(unseen=500, mde80=0.08, low=0.05, high=0.12),
]
ASSUMED = [
    Detectable(unseen=100, mde80=None, low=None, high=None),
    Detectable(unseen=500, mde80=0.5, low=None, high=None),
]
REFERENCE = Reference(
    audit="reference",
    method="min_k(m=32,k=0.2)",
    same_base=True,
    tokens=[AtTokens(m=m, auc=auc, auc_low=auc - 0.1, auc_high=auc + 0.02) for m, auc in ((8, 0.9), (32, 0.97))],
)


def plan(**changes: Any) -> Plan:
    tree = {
        "audit": None, "checkpoint": "runs/model", "with_base": True,
        "benchmark": Asked(name="maths", questions=128, units=128),
        "unseen": Asked(name="fresh", questions=100, units=100),
        "level": 0.05, "confidence": 0.95, "simulations": 400, "detectable_share": 0.3, "no_evidence": False,
        "reference": REFERENCE,
        "strengths": [Strength(name="on reference, min_k(m=32,k=0.2)", d_prime=None, auc=0.97, found=FOUND),
                      Strength(name="assumed, d' = 0.5", d_prime=0.5, auc=0.64, found=ASSUMED)],
        "max_new_tokens": 32, "rough": False, "passes": cost.passes(228, 24_315, 32, 24_000),
        "disk": cost.disk(228, 32, True),
        "memory": [cost.memory("checkpoint", 7_000_000_000, "bfloat16")], "speeds": [], "seconds": 3765.0,
        "notes": ["Sources repeat."],
    }  # fmt: skip
    return Plan.model_validate(tree | changes)


def test_the_table_says_what_is_seen_and_what_it_costs() -> None:
    said = page.table(plan())
    assert "128 questions (maths) against 100 unseen ones (fresh), a base model" in said
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert "on reference, min_k(m=32,k=0.2) 0.97 15% [11%, more] 8% [5%, 12%]" in lines
    assert "assumed, d' = 0.5 0.64 none 50%" in lines
    assert "NO EVIDENCE cannot come out" in said and "M = 8: 0.90 [0.80, 0.92]; M = 32: 0.97" in said
    assert "checkpoint answers 24,315 tokens read, at most 7,296 written" in lines
    assert "base reads the checkpoint's answers 31,611 tokens read, at most 0 written" in lines
    assert any(line.startswith("answers on disk at most 146 kB") for line in lines)
    assert any("14.0 GB weights" in line and "keys and values not known" in line for line in lines)
    assert "time on this machine 1:02:45 at most, by the speed measured just now" in lines


def test_how_many_answers_there_is_memory_for() -> None:
    for free, said in (
        (None, "estimate"),
        (15 * 10**9, "has not that much memory left"),
        (20 * 10**9, "for 59 answers"),
    ):
        config = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}
        found = cost.memory("checkpoint", 7_000_000_000, "bfloat16", config, [(64, 2900)], free)
        assert any(said in line for line in page.table(plan(memory=[found])).splitlines()), found


def test_what_is_not_known_is_said() -> None:
    said = page.table(plan(reference=None, no_evidence=None, rough=True, seconds=None))
    assert said.count("no detector here yet") == 1 and "No detector here yet" in said
    assert "about 24,315 tokens read" in said and "not measured" in said
    alone = REFERENCE.model_copy(update={"tokens": REFERENCE.tokens[1:]})
    assert "longer answers would buy is not known" in page.table(plan(reference=alone))
    assert "NO EVIDENCE can come out" in page.table(plan(no_evidence=True))


def test_shares_and_sizes_in_words() -> None:
    assert [page.share(one) for one in (*FOUND, *ASSUMED)] == ["15% [11%, more]", "8% [5%, 12%]", "none", "50%"]
    assert page.share(Detectable(unseen=1, mde80=None, low=0.6, high=None)) == "none [60%, more]"
    assert (page.size(14_000_000_000), page.size(53_500_000), page.size(None)) == ("14.0 GB", "54 MB", "not known")


def test_the_page_says_the_same_and_hostile_text_stays_text() -> None:
    text = HOSTILE.replace("\ud800", "")
    hostile = REFERENCE.model_copy(update={"audit": text, "method": text})
    raw = page.render(plan(audit=text, checkpoint=text, reference=hostile, notes=[text]))
    shown = Page(raw)
    assert "script" not in shown.tags and "img" not in shown.tags
    assert not {name for name, _ in shown.attributes if name.startswith("on") or name in ("href", "src")}
    assert "15% [11%, more]" in shown.text and "1:02:45 at most" in shown.text and "{{ 7*7 }}" in shown.text
    assert "\x1b" not in page.table(plan(notes=[text], reference=hostile))
