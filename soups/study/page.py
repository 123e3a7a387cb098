"""The report of a study as one page that opens without a network: figures inside, no script."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from soups.study.evidence import ENSEMBLE, LINE, MORL, SOUPS
from soups.study.figures import shown_metrics
from soups.study.markup import WORDS, card, estimate, picture, shown, table, text, word
from soups.study.schema import START

Report = Mapping[str, Any]
MAX_CARDS = 2  # of pairs; more are counted


def page(report: Report, root: Path) -> str:
    """Return the page; pictures are read from ``root``."""
    parts = [_head(report), *(_front(report, front, root) for front in report["fronts"])]
    parts += [section(report, root) for section in (_spider, _paths, _merges, _models, _settings)]
    template = files("soups").joinpath("study.html").read_text(encoding="utf-8")
    return template.replace("__TITLE__", text(report["title"])).replace("__BODY__", "\n".join(filter(None, parts)))


def _figure(report: Report, name: str, root: Path) -> str:
    return picture(root / report["figures"][name], name)


def _head(report: Report) -> str:
    seeds = ", ".join(str(seed) for seed in report["seeds"])
    facts = (
        f"{report['num_samples']} samples per split, seed{'s' * (len(report['seeds']) > 1)} {seeds}. "
        "Intervals: 95 %, paired bootstrap over samples"
        + (" and seeds." if len(report["seeds"]) > 1 else "; one seed, so they do not cover trainings.")
    )
    lines = [
        '<p class="kicker">soups study</p>',
        f"<h1>{text(report['title'])}</h1>",
        f'<p class="lede">{text(report["question"])}</p>' if report["question"] else "",
        f'<p class="note">{facts}</p>',
    ]
    if report["paper"]:
        lines.append(f'<p class="note"><b>The paper:</b> {text(report["paper"])}</p>')
    return "\n".join([*lines, f'<div class="cards">{"".join(_cards(report))}</div>'])


def _cards(report: Report) -> list[str]:
    return [*_front_cards(report["fronts"]), *_spider_cards(report), *_merge_cards(report), *_path_cards(report)]


def _front_cards(fronts: Sequence[Report]) -> list[str]:
    """Return the two hypotheses: of each pair, or of all pairs together when there are many."""
    titles = {"lmc": "soups above the straight line", "pareto": "soups at least as good as MORL"}
    cards = []
    for key, title in titles.items():
        found = [(front, front["hypotheses"][key]) for front in fronts if key in front["hypotheses"]]
        if len(found) > MAX_CARDS:
            counts = {verdict: sum(each["verdict"] == verdict for _, each in found) for verdict in WORDS}
            note = f"Does not hold for {counts['contradicted']}; is not decided for {counts['undecided']}."
            cards.append(card(f"Pairs with {title}", f"{counts['supported']} of {len(found)}", note))
            continue
        for front, each in found:
            note = f"Hypervolume over the line {estimate(each['gain'])}" if key == "lmc" else ""
            if key == "pareto":
                note = f"At equal points {estimate(each['equal_points'])}; at equal cost {estimate(each['equal_cost'])}"
            cards.append(card(f"{text(' and '.join(front['of']))}: {title}", word(each["verdict"]), note))
    return cards


def _spider_cards(report: Report) -> list[str]:
    spider = report["spider"]
    if not (spider and spider["soup_minus_morl"]):
        return []
    note = f"Of {len(spider['metrics'])} rewards; MORL is ahead on {spider['num_behind']}, the others are open."
    return [card("Uniform soup against one training on all rewards", f"ahead on {spider['num_ahead']}", note)]


def _merge_cards(report: Report) -> list[str]:
    cards = []
    for split, about in report["splits"].items():
        rows = [row for _, _, where, row in headline(report) if where == split]
        if about["ood"] and rows:
            counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in WORDS}
            note = (
                f"Of {len(rows)} scores, for the merge that held-out samples of the training distribution choose; "
                f"behind on {counts['contradicted']}, not decided on {counts['undecided']}."
            )
            title = f"{text(split)}: a merge ahead of every specialist"
            cards.append(card(title, f"on {counts['supported']}", note))
    return cards


def _path_cards(report: Report) -> list[str]:
    if not report["paths"]:
        return []
    broken = sum(path["verdict"] == "supported" for path in report["paths"])
    return [card("Paths with a barrier", f"{broken} of {len(report['paths'])}", "Their interval excludes zero.")]


def headline(report: Report) -> list[tuple[str, str, str, Report]]:
    """Return metric, merge, split and margins of the merge chosen for each metric, out of distribution."""
    merges = report["merges"]
    if not merges:
        return []
    found = []
    for split, about in report["splits"].items():
        if about["ood"]:
            for metric, name in merges["chosen"].items():
                if metric in shown_metrics(report):
                    found.append((metric, name, split, merges["leads"][split][metric]["rows"][name]))
    return found


def _front(report: Report, front: Report, root: Path) -> str:
    name, knee = " | ".join(front["of"]), front["knee"]
    parts = [
        f"<section><h2>{text(' and '.join(front['of']))}</h2>",
        '<div class="pair">',
        f"<div>{_figure(report, f'front {name}', root)}{_figure(report, f'metrics {name}', root)}</div>",
        f"<div><h3>Fronts</h3>{_indicators(front['numbers'])}",
        _first_hypothesis(front),
        _second_hypothesis(front),
        _other_sets(front["numbers"]),
        f"<p>Knee at {text(_spelled(knee['coefficients']))}, in {knee['share_of_resamples']:.0%} of the resamples.</p>",
        f"</div></div>{_samples(front['samples'])}</section>",
    ]
    return "\n".join(parts)


def _indicators(numbers: Report) -> str:
    """Return the table of hypervolumes and distances of all sets; those named first have a word about their cost."""
    costs = {
        SOUPS: "one training per specialist",
        LINE: "interpolated scores, no models",
        MORL: "one training per point",
        ENSEMBLE: "every model runs at every use",
        "fusing": "trained again from the mean of all",
        "ratatouille": "trained again from every other specialist",
    }
    found = [key.removeprefix("hypervolume/") for key in numbers if key.startswith("hypervolume/")]
    rows = []
    for label in sorted(found, key=lambda label: label not in costs):  # stable: the full sets first
        note = f"<br><span class='ci'>{costs[label]}</span>" if label in costs else ""
        cells = (estimate(numbers[f"{indicator}/{label}"]) for indicator in ("hypervolume", "igd_plus"))
        rows.append([text(label) + note, *cells])
    note = '<p class="note">In the box of all models, the reference 10 % below its worst corner.</p>'
    return table(["", "hypervolume, more is better", "IGD+, less is better"], rows) + note


def _first_hypothesis(front: Report) -> str:
    found, labels = front["hypotheses"]["lmc"], front["front"]["labels"]
    rows = [
        [text(labels[metric]), estimate(found["smallest_margins"][metric]), estimate(found["mean_margins"][metric])]
        for metric in front["metrics"]
    ]
    count = found["num_below"]  # null where one specialist is the better in both
    below = "" if count is None else f"{count} of {found['num_inside']} soups lie below the chord. "
    return (
        "<h3>Hypothesis 1: soups are above the straight line</h3>"
        f"<p>It {word(found['verdict'])}: the area between front and chord is {estimate(found['area'])} of the box "
        f"(the corner of both best scores would give half of the specialists' own box). {below}"
        f"The hypervolume of the soups, as points, is ahead of that of as many evenly spaced points "
        f"of the chord by {estimate(found['gain'])}.</p>"
        + table(["margin over the line, in ranges of the specialists", "smallest", "mean"], rows)
    )


def _second_hypothesis(front: Report) -> str:
    found = front["hypotheses"].get("pareto")
    if not found:
        return ""
    rows = [
        [
            "equal number of points",
            estimate(found["equal_points"]),
            estimate(found["equal_points_igd_plus"]),
            word(found["verdict"]),
        ],
        [
            f"equal number of trainings ({len(front['of'])}, MORL's best in hindsight)",
            estimate(found["equal_cost"]),
            estimate(found["equal_cost_igd_plus"]),
            word(found["verdict_at_equal_cost"]),
        ],
    ]
    head = ["soups ahead of MORL by", "hypervolume", "IGD+", ""]
    return "<h3>Hypothesis 2: soups are at least as good as MORL</h3>" + table(head, rows)


def _other_sets(numbers: Report) -> str:
    rows = []
    for key in numbers:
        name = key.removeprefix("equal points/").removesuffix("/hypervolume")
        if key == f"equal points/{name}/hypervolume" and name != MORL:
            rows.append([text(name), estimate(numbers[key]), estimate(numbers[f"equal points/{name}/igd_plus"])])
    if not rows:
        return ""
    return table(["soups ahead, at equal points, of", "hypervolume", "IGD+"], rows)


def _spelled(coefficients: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {weight:.2g}" for name, weight in coefficients.items())


def _samples(samples: Report) -> str:
    if not samples["rows"]:
        return ""
    head = ["", *(text(_spelled(column)) for column in samples["columns"])]
    rows = []
    for row in samples["rows"]:
        shared = "".join(_value(value) for value in row["shared"].values())
        rows.append([shared, *(_value(cell) for cell in row["cells"])])
    return "<h3>Samples along the coefficient</h3>" + table(head, rows, "samples")


def _value(value: str) -> str:
    if value.startswith("data:image/"):
        return f'<img alt="" src="{text(value)}">'
    return text(value) + "<br>"


def _spider(report: Report, root: Path) -> str:
    spider = report["spider"]
    if not spider:
        return ""
    head = ["", *(text(report["labels"][metric]) for metric in spider["metrics"])]
    rows = [
        [text("init" if name == START else name), *(estimate(row[metric]) for metric in spider["metrics"])]
        for name, row in spider["values"].items()
    ]
    if spider["soup_minus_morl"]:
        rows.append(["<b>soup minus MORL</b>", *(estimate(spider["soup_minus_morl"][m]) for m in spider["metrics"])])
    body = f'<div class="pair">{_figure(report, "spider", root)}<div>{table(head, rows)}</div></div>'
    return f"<section><h2>Several rewards at once</h2>{body}</section>"


def _paths(report: Report, root: Path) -> str:
    if not report["paths"]:
        return ""
    rows = [
        [
            text(path["group"]),
            text(" and ".join(path["of"])),
            shown(path["distance"]),
            estimate(path["numbers"]["barrier"]),
            estimate(path["numbers"]["gain"]),
            estimate(path["numbers"]["ends"]),
        ]
        for path in report["paths"]
    ]
    head = ["varied", "between", "distance", "barrier", "gain", "mean of the ends"]
    pictures = _figure(report, "barriers", root) + _figure(report, "paths", root)
    note = '<p class="note">Barrier: the largest fall below the straight line between the ends, never negative.</p>'
    body = f'<div class="pair">{pictures}</div>{note}{table(head, rows)}'
    return f"<section><h2>Where connectivity ends</h2>{body}</section>"


def _merges(report: Report, root: Path) -> str:
    merges = report["merges"]
    if not merges:
        return ""
    parts = ["<section><h2>Merges, in and out of distribution</h2>"]
    num = len(merges["names"])
    parts.append(
        f'<p class="note">{num} merges were scored; with that many, some interval excludes zero by chance. The one '
        "marked * is the best on held-out samples of the training distribution, which know nothing of these tables.</p>"
    )
    parts += [_figure(report, f"merges {metric}", root) for metric in shown_metrics(report)]
    for split, about in report["splits"].items():
        title = f"{text(split)}{', out of distribution' if about['ood'] else ''}: ahead of the best specialist by"
        metrics = [metric for metric in shown_metrics(report) if metric in merges["leads"][split]]
        rows = []
        for name in merges["names"]:
            cells = [merges["leads"][split][metric]["rows"][name] for metric in metrics]
            stars = ["*" if merges["chosen"].get(metric) == name else "" for metric in metrics]
            shades = [
                f'<span class="{cell["verdict"]}">{estimate(cell["over_best_single"])}{star}</span>'
                for cell, star in zip(cells, stars, strict=True)
            ]
            rows.append([text(name), *shades])
        best = [
            f"{text(report['labels'][m])}<br>best: {text(merges['leads'][split][m]['best_single'])}" for m in metrics
        ]
        parts += [f"<h3>{title}</h3>", table(["", *best], rows)]
    return "\n".join([*parts, "</section>"])


def _models(report: Report, root: Path) -> str:
    parts = ["<section><h2>Every model</h2>"]
    for split, about in report["splits"].items():
        rows = [row for row in report["models"] if split in row["scores"]]
        metrics = list(report["labels"])
        head = [
            text(split) + (" (out of distribution)" if about["ood"] else ""),
            *(text(report["labels"][m]) for m in metrics),
        ]
        cells = [[text(row["name"]), *(estimate(row["scores"][split].get(m)) for m in metrics)] for row in rows]
        parts.append(table(head, cells))
    return "\n".join([*parts, "</section>"])


def _settings(report: Report, root: Path) -> str:
    seconds = report["timing"]["training_seconds"]
    rows = [[text(name), shown(value)] for name, value in seconds.items()]
    scoring = report["timing"]["scoring_seconds"]
    total = f"{sum(seconds.values()) / 60:.1f} minutes of training, {scoring / 60:.1f} of scoring."
    study = text(json.dumps(report["study"], indent=1, ensure_ascii=False))
    return (
        f"<section><h2>Settings</h2><p>{total}</p>"
        f"<details><summary>Trainings</summary>{table(['training', 'seconds'], rows)}</details>"
        f"<details><summary>The study</summary><pre>{study}</pre></details></section>"
    )
