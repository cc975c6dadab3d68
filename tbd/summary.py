"""Verdicts in few words: a table for the terminal, rows and Markdown for Prefect."""

from typing import Any

from tabulate import tabulate


def interval(values: dict[str, Any], key: str, form: str = ".2f") -> str:
    """`0.94 [0.88, 0.98]`."""
    return f"{values[key]:{form}} [{values[f'{key}_low']:{form}}, {values[f'{key}_high']:{form}}]"


def row(verdict: dict[str, Any]) -> dict[str, str]:
    """One audit in one line."""
    rate, labelled = verdict["rate"], verdict.get("labelled")
    return {
        "audit": verdict["audit"],
        "verdict": verdict["verdict"],
        "flagged": f"{verdict['flagged']} of {verdict['benchmark']['n']}",
        "contaminated share": f"{rate['estimate']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]",
        "p-value": f"{verdict['p_value']:.2g}",
        "power": "unknown" if verdict["power"] is None else interval(verdict, "power"),
        "AUC (labels)": interval(labelled, "auc", ".3f") if labelled else "",
    }


def table(verdicts: list[dict[str, Any]]) -> str:
    """The table that `tbd check` prints."""
    return str(tabulate([row(verdict) for verdict in verdicts], headers="keys", disable_numparse=True))


def verdict_markdown(verdict: dict[str, Any]) -> str:
    """A Prefect artifact. Names come from files, so they are fenced as code."""
    lines = [
        f"# {verdict['verdict']}",
        f"Audit `{verdict['audit']}`: checkpoint `{verdict['checkpoint']}` on benchmark `{verdict['benchmark']['name']}`.",
        *verdict["reasons"],
        "| | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in row(verdict).items() if value),
        *(f"> {warning}" for warning in verdict["warnings"]),
        f"Report: `audits/{verdict['audit']}/report.html`",
    ]
    return "\n\n".join(lines)


def detector_markdown(detector: dict[str, Any]) -> str:
    """A Prefect artifact: the chosen methods with their intervals."""
    rows = [
        {
            "needs": "checkpoint and base" if choice == "with_base" else "checkpoint alone",
            "method": f"`{chosen['id']}`",
            "AUC": interval(chosen, "auc", ".3f"),
            f"TPR at {detector['fpr']:.0%} FPR": f"{chosen['tpr_at_fpr']:.2f} [{chosen['tpr_low']:.2f}, {chosen['tpr_high']:.2f}]",
            "power": interval(chosen, "power"),
        }
        for choice, chosen in detector["choices"].items()
        if chosen
    ]
    return f"# Detector {detector['version']}\n\n" + str(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
