"""The findings of the paper, looked for in the embedded world: `python benchmarks/results.py`.

Runs one section after the other, and writes the tables and pictures of docs/results.md. Every score
is kept in its own file below `--out`, so a run that was stopped can be resumed.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rich
from concepts import LOOK_ALIKES, colors_of, concept_scenes
from PIL import Image

from maskclip.cli.train_progress import TrainProgress
from maskclip.core.config import DEFAULT_OPTIONS, ModelConfig, Options
from maskclip.core.files import atomic_path, write_json
from maskclip.core.samples import Samples
from maskclip.data.corruptions import CORRUPTIONS, SEVERITIES, Corruption
from maskclip.emoji.layers import texture_names
from maskclip.emoji.scenes import EmojiScenes, training_scenes
from maskclip.emoji.sprites import HELD_OUT_PAIRS
from maskclip.plus.config import Machine, Training
from maskclip.tasks.evaluation.cells import earlier_result
from maskclip.tasks.evaluation.charts import confusion_chart, line_chart
from maskclip.tasks.evaluation.evaluate import EvaluationResult, describe, evaluate
from maskclip.tasks.evaluation.examples import contact_sheet
from maskclip.tasks.evaluation.predictors import load_predictor
from maskclip.tasks.evaluation.results import (
    UNCORRUPTED,
    cell_name,
    run_sweep,
    write_sweep,
)
from maskclip.tasks.evaluation.settings import Evaluation, Run
from maskclip.tasks.train import train
from maskclip.trainings import TRAININGS

MODELS = ("emoji-rn", "emoji-vit")
REFINEMENTS = {
    "none": Options(),
    "KS": Options(key_smoothing=1.0),
    "PD": Options(prompt_denoising=0.5),
    "KS+PD": Options(key_smoothing=1.0, prompt_denoising=0.5),
}
SIZES = {f"{factor}x": 256 * factor for factor in (1, 2, 3, 4)}
MANY_CELLS, LARGE = 150, 100  # scenes of a cell where there are many cells, or large ones
EACH = 25  # scenes of a concept
STUDENTS = ("emoji-annofree-rn", "emoji-annofree-vit")
FURTHER, FURTHER_STEPS = STUDENTS[0], 2500  # by which this one is trained further
FEWER_STEPS = 600
ZERO_SHOT = "emoji-zeroshot-rn"
VALIDATED = 60  # scenes per validation
MACHINE = Machine(device="cpu", precision="bfloat16", validate_every=200, validate_on=VALIDATED)
PICTURED = [(MODELS[0], names) for names in (LOOK_ALIKES[0], colors_of("car"))]

DOCUMENT = Path(__file__).parents[1] / "docs" / "results.md"
PICTURES = DOCUMENT.parent / "results"

Table = list[list[str]]


def emoji(model: str, *, method: str = "clean", options: Options = DEFAULT_OPTIONS) -> Evaluation:
    """An evaluation on the embedded world, as `maskclip eval emoji` does it."""
    config = ModelConfig(name=model, method=method, precision="float32")
    return Evaluation(dataset="emoji", protocol="segment", model=config, options=options)


def measure(
    evaluation: Evaluation,
    samples: Samples,
    path: Path,
    *,
    limit: int | None = None,
    extra: Callable[[EvaluationResult], dict[str, Any]] = lambda _: {},
) -> tuple[dict[str, Any], EvaluationResult | None]:
    """Evaluate, or read what an earlier run wrote; the second value is None then."""
    predictor, run = load_predictor(evaluation, samples, device="cpu"), Run(limit=limit)
    kept = earlier_result(path, describe(predictor, samples, run))
    if kept is not None:
        return kept, None
    result = evaluate(predictor, samples, run)
    content = {**result.to_dict(), **extra(result)}
    write_json(content, path)
    rich.print(f"{path.stem}: mIoU {percent(content['miou'])}")
    return content, result


def refinement(out: Path) -> Table:
    """Model x method x refinement, and the baseline that reads CLIP's ordinary attention."""
    rows = [["model", "method", *REFINEMENTS]]
    for model in MODELS:
        for method in ("clean", "published", "baseline"):
            row = [model, method]
            for name, options in REFINEMENTS.items():
                if method == "baseline" and name != "none":
                    row.append("")
                    continue
                evaluation = emoji(model, method=method, options=options)
                path = out / f"{model}_{method}_{name}.json"
                row.append(percent(measure(evaluation, EmojiScenes(), path)[0]["miou"]))
            rows.append(row)
    return rows


def resolution(out: Path) -> Table:
    """The same scenes, enlarged before the network sees them."""
    rows = [["model", "method", *(f"{name} ({size} px)" for name, size in SIZES.items())]]
    lines = {}
    for model in MODELS:
        for method in ("clean", "published"):
            scores = []
            for size in SIZES.values():
                evaluation = emoji(model, method=method, options=Options(short_side=size))
                path = out / f"{model}_{method}_{size}.json"
                found, _ = measure(evaluation, EmojiScenes(), path, limit=LARGE)
                scores.append(found["miou"])
            rows.append([model, method, *map(percent, scores)])
            lines[f"{model}, {method}"] = list(zip(SIZES.values(), scores, strict=True))
    line_chart(
        lines,
        PICTURES / "resolution.png",
        title=f"The same {LARGE} scenes of 256 px at other working sizes",
        x_label="short side that the network sees, px",
        y_label="mIoU, %",
    )
    return rows


def corruption(out: Path) -> Table:
    """Eight corruptions at five severities."""
    rows = [["model", "corruption", UNCORRUPTED, *map(str, SEVERITIES), "mean / clean"]]
    for model in MODELS:
        samples = EmojiScenes()
        predictor = load_predictor(emoji(model), samples, device="cpu")
        cells = {}
        for cell in run_sweep(predictor, samples, Run(limit=MANY_CELLS), out / model):
            cells[cell.name] = cell.result
            rich.print(f"{model} {cell.name}: mIoU {percent(cell.result['miou'])}")
        chart, _ = write_sweep(cells, out / model)
        with atomic_path(PICTURES / f"severity-{model}.png") as temporary:
            temporary.write_bytes(chart.read_bytes())
        clean = cells[UNCORRUPTED]["miou"]
        for kind in CORRUPTIONS:
            line = [cells[cell_name(Corruption(kind, step))]["miou"] for step in SEVERITIES]
            share = f"{np.mean(line) / clean:.2f}"
            rows.append([model, kind, percent(clean), *map(percent, line), share])
    return rows


def look_alikes(out: Path) -> Table:
    """Things that look much the same: their group and the textures are the candidates."""
    rows = [["group", *(f"{model} {what}" for model in MODELS for what in ("told apart", "mIoU"))]]
    for group in LOOK_ALIKES:
        row = [", ".join(group)]
        for model in MODELS:
            found = concepts(group, model, out)
            shares = ", ".join(percent(found["told_apart"][name]) for name in group)
            row += [shares, percent(float(np.mean([found["iou"][name] for name in group])))]
        rows.append(row)
    return rows


def novel_pairs(out: Path) -> Table:
    """Pairs of a colour and a thing that no training caption names, among that thing's colours."""
    heads = [f"{model} {what}" for model in MODELS for what in ("pair", "trained colours")]
    rows = [["never trained: told apart", *heads]]
    totals = []
    for color, thing in HELD_OUT_PAIRS:
        scores = []
        for model in MODELS:
            shares = dict(concepts(colors_of(thing), model, out)["told_apart"])
            scores += [shares.pop(f"{color} {thing}"), float(np.mean(list(shares.values())))]
        rows.append([f"{color} {thing}", *map(percent, scores)])
        totals.append(scores)
    rows.append(["mean", *map(percent, np.mean(totals, axis=0).tolist())])
    return rows


def concepts(names: Sequence[str], model: str, out: Path) -> dict[str, Any]:
    """Measure scenes of these concepts; draw what was mistaken for what, where that is shown."""
    samples = concept_scenes(names, each=EACH)
    name = f"{model}-{names[0].replace(' ', '-')}"
    found, result = measure(emoji(model), samples, out / f"{name}.json", extra=told_apart)
    if result is not None and (model, tuple(names)) in PICTURED:
        title, vocabulary = f"{model}: {', '.join(names)}", samples.vocabulary
        path = PICTURES / f"confusion-{name}.png"
        confusion_chart(result.scores.confusion, vocabulary.names, path, title=title)
        sheet = out / f"{name}.png"
        contact_sheet(
            result.best[:3],
            result.worst[:3],
            sheet,
            names=vocabulary.names,
            colors=vocabulary.colors,
            ignore=vocabulary.ignore,
            title=title,
        )
        with atomic_path(PICTURES / f"scenes-{name}.jpg") as temporary:
            Image.open(sheet).convert("RGB").save(temporary, quality=85)
    return found


def told_apart(result: EvaluationResult) -> dict[str, Any]:
    """Of a concept's pixels that were called any of the concepts: how many were called it, in %."""
    names = result.samples.vocabulary.names
    count = len(names) - len(texture_names())
    counts = result.scores.confusion[:count, :count]
    shares = 100 * counts.diagonal() / np.maximum(counts.sum(axis=1), 1)  # never called: 0
    return {"told_apart": dict(zip(names[:count], shares.tolist(), strict=True))}


def students(out: Path) -> Table:
    """Students of drawn scenes without labels, beside the CLIPs that taught them."""
    rows = [["student", "steps", "teacher", "teacher's mIoU", "student's mIoU", "gain"]]
    lines = {}
    trainings = {name: TRAININGS[name].training for name in STUDENTS}
    trainings[f"{FURTHER}, further"] = further(trainings[FURTHER], out / FURTHER)
    for name, training in trainings.items():
        model = training.teacher.name
        teacher, _ = measure(emoji(model), EmojiScenes(), out / f"{model}.json")
        run = out / name.replace(", ", "-")
        found = learn(training, run)["last"]
        scores = (teacher["miou"], found["miou"])
        gain = f"{scores[1] - scores[0]:+.1f}"
        steps = f"{training.optimization.steps:,}"
        rows.append([name, steps, model, *map(percent, scores), gain])
        lines[name] = curve(run)
    draw_curves(lines, "students", "Students of unlabelled scenes while they learn")
    return rows


def further(training: Training, run: Path) -> Training:
    """Return a training that starts from the student of another, with another seed."""
    optimization = replace(training.optimization, steps=FURTHER_STEPS, seed=1)
    return replace(training, initial=str(run / "student.safetensors"), optimization=optimization)


def refined_students(out: Path) -> Table:
    """What refining the teacher's maps does to students of fewer steps."""
    kinds = ("none", "KS", "PD")
    rows = [["student", *kinds]]
    training = TRAININGS[STUDENTS[0]].training
    training = replace(training, optimization=replace(training.optimization, steps=FEWER_STEPS))
    row, lines = [f"{STUDENTS[0]}, {FEWER_STEPS} steps"], {}
    for name in kinds:
        options = REFINEMENTS[name]
        supervision = replace(
            training.supervision,
            key_smoothing=options.key_smoothing,
            prompt_denoising=options.prompt_denoising,
        )
        run = out / name
        row.append(percent(learn(replace(training, supervision=supervision), run)["last"]["miou"]))
        lines[name] = curve(run)
    draw_curves(lines, "refined-students", "Students of refined labels while they learn")
    return [*rows, row]


def zero_shot(out: Path) -> Table:
    """Eight classes without labels, when CLIP has labelled them and after self-training."""
    training = TRAININGS[ZERO_SHOT].training
    found = learn(training, out / ZERO_SHOT)
    parts = ("seen", "unseen", "harmonic")
    rows = [[ZERO_SHOT, "mIoU", *parts, "unseen / seen"]]
    for when, name in (("before self-training", "before"), ("after", "last")):
        scores = found[name]["zero_shot"]
        share = f"{scores['unseen'] / scores['seen']:.2f}"
        rows.append(
            [when, percent(found[name]["miou"]), *(percent(scores[p]) for p in parts), share]
        )
    lines = {"all 60 classes": curve(out / ZERO_SHOT)}
    draw_curves(lines, "zero-shot", "The zero-shot student while it learns")
    return rows


def draw_curves(lines: dict[str, list[tuple[int, float]]], name: str, title: str) -> None:
    """Draw the mIoU of trainings over their steps."""
    line_chart(
        lines,
        PICTURES / f"{name}.png",
        title=f"{title}, on {VALIDATED} scenes",
        x_label="step",
        y_label="mIoU, %",
    )


def learn(training: Training, run: Path) -> dict[str, dict[str, Any]]:
    """Train a student, or resume it; measure its last step, and the one before self-training."""
    machine, files = MACHINE, {"last": run / "last.ckpt"}
    if training.supervision.self_training is not None:
        steps = training.supervision.self_training[0] - 1
        machine = replace(machine, keep_every=steps)
        files["before"] = run / f"step={steps}.ckpt"
    if not (run / "student.safetensors").is_file():
        train(
            training,
            training_scenes(),
            run,
            validation=EmojiScenes(),
            machine=machine,
            resume=True,
            callbacks=[TrainProgress(EmojiScenes().vocabulary.names)],
        )
    return {
        name: measure(emoji(str(file)), EmojiScenes(), run / f"{name}.json")[0]
        for name, file in files.items()
    }


def curve(run: Path) -> list[tuple[int, float]]:
    """Return the steps of a training's validations and their mIoU, in percent."""
    points = {}
    for log in sorted((run / "logs" / "csv").rglob("metrics.csv")):
        for line in csv.DictReader(log.read_text(encoding="utf-8").splitlines()):
            if line.get("miou"):
                points[int(line["step"]) + 1] = float(line["miou"])
    return sorted(points.items())


SECTIONS: dict[str, Callable[[Path], Table]] = {
    "refinement": refinement,
    "look-alikes": look_alikes,
    "novel-pairs": novel_pairs,
    "corruption": corruption,
    "resolution": resolution,
    "students": students,
    "refined-students": refined_students,
    "zero-shot": zero_shot,
}


def percent(score: float | None) -> str:
    """A score with one decimal, as the paper has it."""
    return "n/a" if score is None else f"{score:.1f}"


def write_table(section: str, table: Table) -> None:
    """Put a table between its two marks in the document."""
    head, *body = ("| " + " | ".join(row) + " |" for row in table)
    lines = "\n".join([head, "|" + "---|" * len(table[0]), *body])
    begin, end = f"<!-- {section} -->", f"<!-- end of {section} -->"
    text = DOCUMENT.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{DOCUMENT} has no marks {begin} and {end}")
    text = pattern.sub(lambda _: f"{begin}\n{lines}\n{end}", text)
    with atomic_path(DOCUMENT) as temporary:
        temporary.write_text(text, encoding="utf-8")


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure, and write docs/results.md's tables.")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/results"), help="scores are kept here"
    )
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all by default")
    options = parser.parse_args(None if arguments is None else list(arguments))
    for section in options.sections or SECTIONS:
        write_table(section, SECTIONS[section](options.out / section))
        rich.print(f"{section}: done")


if __name__ == "__main__":
    main()
