"""A plan as tables for people."""

from typing import Any

from rich.console import Console
from rich.table import Table

GB = 10**9


def print_plan(plan: dict[str, Any]) -> None:
    """Print the report of `unival.planning.cost.report`."""
    console = Console()
    for stage in plan["stages"]:
        steps = f"{stage['steps']:,} updates" if stage["steps"] else "updates unknown: its rows are not here"
        console.print(f"[bold]stage {stage['name']}[/]: {steps}")
        console.print(_parameters(stage))
        console.print(_work(stage))
        console.print(_costs(plan, stage))
        for cost in stage["costs"]:
            if cost["advice"]:
                console.print(f"{cost['kind']} does not fit: {cost['advice']}")


def _parameters(stage: dict[str, Any]) -> Table:
    table = Table("part", "parameters")
    for part, count in stage["parameters"].items():
        table.add_row(part, f"{count:,}")
    table.add_row("all", f"{stage['total']:,}")
    table.add_row("trained", f"{stage['trained']:,}")
    return table


def _work(stage: dict[str, Any]) -> Table:
    table = Table("per update", "examples", "media", "tokens", "TFLOP", "activations per process and pass")
    for group in stage["groups"]:
        table.add_row(
            group["modality"],
            f"{group['examples']:,.0f}",
            f"{group['media']:,.0f}",
            f"{group['tokens']:,.0f}",
            f"{group['flops'] / 1e12:,.1f}",
            f"{group['activations'] / GB:.2f} GB",
        )
    table.caption = f"{stage['flops_per_example'] / 1e9:,.1f} GFLOP per example, forward and backward"
    return table


def _costs(plan: dict[str, Any], stage: dict[str, Any]) -> Table:
    gpu = plan["gpu"]
    costs = stage["costs"]
    table = Table("per device", *(cost["kind"] for cost in costs))  # a column each: eight would not fit a terminal
    for purpose in costs[0]["memory"]:
        table.add_row(f"{purpose}, GB", *(f"{cost['memory'][purpose] / GB:.2f}" for cost in costs))
    table.add_row("all, GB", *(f"{cost['bytes'] / GB:.2f}" for cost in costs))
    table.add_row("seconds per update", *(f"{cost['seconds']:.3f}" for cost in costs))
    if costs[0]["hours"] is not None:
        table.add_row("hours", *(f"{cost['hours']:,.1f}" for cost in costs))
    assumed = f"{plan['efficiency']:.0%} of {plan['peak']:g} TFLOP/s ({plan['precision']})"
    passes = plan["accumulation"]
    table.caption = f"{plan['world']} x {gpu['name']} ({gpu['memory']:g} GB), {passes} passes per update, at {assumed}"
    return table
