"""Tables and the picture of what benchmarks/scaling_xxl.py models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.scaling_model import StatedLink
from benchmarks.scaling_xxl import GPUS, LINKS, PHASES, RECIPE, Model, Rates, Row
from sid_ray.config.distill_config import DistillConfig
from sid_ray.distributed.deepspeed_role import BUCKET
from sid_ray.planning.fit import stage_variants
from sid_ray.planning.memory import FAKE_SCORE, GENERATOR, GIB
from sid_ray.recipes.registry import recipe, recipe_entry


def assumed(model: Model) -> Iterator[str]:
    """What the tables rest on."""
    rates, passes = model.rates, model.passes
    yield f"EDM2-XXL modelled, not measured: {model.sizes.parameters:,} parameters, {RECIPE}"
    yield (
        f"counted: {model.flop / 1e9:,.0f} GFLOP an image; weights move "
        f"{passes[FAKE_SCORE].moved / GIB:.0f} GiB in a fake-score pass, "
        f"{passes[GENERATOR].moved / GIB:.0f} GiB in a generator pass, however few images it has"
    )
    yield (
        f"assumed: {rates.share:.0%} of {rates.peak / 1e12:g} TFLOP/s, "
        f"{rates.memory / 1e12:g} TB/s of memory, {LINKS[0].share:.0%} of stated bandwidths, "
        f"{rates.gpu_gib:g} GiB, overlap {model.overlap:g}"
    )


def main_table(model: Model, link: StatedLink, rows: Sequence[Row]) -> Iterator[str]:
    """One row a world size, at the stage that is recommended."""
    published = recipe_entry(RECIPE).published
    assert published is not None and published.images_seen is not None
    yield f"\n{link.name}, {published.images_seen:,} images:\n"
    yield (
        "| GPUs | ZeRO | micro-batch | passes | GiB a GPU | compute, s | communication, s | "
        "iteration, s | images/s | efficiency | hours |"
    )
    yield "|" + "---:|" * 11
    for row in rows:
        spent, efficiency = row.seconds, efficiency_of(row, rows[0])
        yield (
            f"| {row.gpus} | {row.stage} | {row.micro_batch} | {row.passes} "
            f"| {row.peak / GIB:.1f}{'' if row.fits else '!'} "
            f"| {spent.passes + spent.update:.2f} | {spent.communication - spent.hidden:.2f} "
            f"| {spent.total:.2f} | {row.images_s:,.0f} | {efficiency:.0%} "
            f"| {published.images_seen / row.images_s / 3600:,.0f} |"
        )


def efficiency_of(row: Row, first: Row) -> float:
    """Images a second and GPU, of those on the fewest GPUs."""
    return row.images_s / row.gpus / (first.images_s / first.gpus)


def stages_table(model: Model) -> Iterator[str]:
    """Every stage at three world sizes: images a second over both links."""
    yield "\nevery stage, each at the largest micro-batch that fits; sent by a GPU, an iteration:\n"
    names = " | ".join(f"images/s, {link.name}" for link in LINKS)
    yield f"| GPUs | ZeRO | micro-batch | GiB a GPU | at micro-batch 2 | sent, GiB | {names} |"
    yield "|" + "---:|" * 8
    for gpus in (8, 64, 512):
        for stage in stage_variants(model.config):
            rows = [model.row(gpus, stage, link) for link in LINKS]
            first = rows[0]
            speeds = " | ".join(f"{row.images_s:,.0f}" for row in rows)
            yield (
                f"| {gpus} | {stage} | {first.micro_batch} | {first.peak / GIB:.1f} "
                f"| {model.memory(gpus, stage):.1f} | {first.sent / GIB:.1f} | {speeds} |"
            )


def groups_table(config: DistillConfig) -> Iterator[str]:
    """How many GPUs each size's groups allow, and what the last of them idle."""
    yield "\ngroups of the EDM2 recipes, and the share of computed groups that is no padding:\n"
    yield (
        "| recipe | group | most GPUs | "
        + " | ".join(f"{gpus}" for gpus in (*GPUS, 96, 384))
        + " |"
    )
    yield "|---|" + "---:|" * (len(GPUS) + 4)
    for size in ("xs", "s", "m", "l", "xl", "xxl"):
        training = recipe(f"img512-{size}-sida").training
        groups = training.batch_size // training.group_size
        cells = [
            f"{groups / (gpus * -(-groups // gpus)):.0%}" if gpus <= groups else "refused"
            for gpus in (*GPUS, 96, 384)
        ]
        yield f"| img512-{size}-sida | {training.group_size} | {groups} | {' | '.join(cells)} |"


def recipe_micro_batch(model: Model) -> str:
    """What the recipe's own micro-batch would cost."""
    size = model.config.training.group_size
    times = [model.passes[phase] for phase in PHASES]
    spent = sum(one.seconds(size, model.rates) for one in times)
    weights = sum(one.moved for one in times) / model.rates.memory
    return (
        f"\nat the recipe's micro-batch of {size}, {weights / spent:.0%} of a pass would be the "
        "weights' own; hence the largest micro-batch that fits"
    )


def larger_buckets(model: Model) -> str:
    """What fewer, larger collectives would do where waiting for a ring's steps is most of them."""
    gpus, stage = GPUS[-1], model.chosen(GPUS[-1])
    own, ten = (model.row(gpus, stage, LINKS[0], times * BUCKET) for times in (1, 10))
    return (
        f"\nbuckets of {10 * BUCKET:,} elements instead of {BUCKET:,}: {gpus} GPUs "
        f"with {LINKS[0].name} {ten.images_s:,.0f} images/s instead of {own.images_s:,.0f}"
    )


def show_model(rates: Rates, overlap: float, picture: Path) -> None:
    """Prints the tables and draws the picture."""
    model = Model(rates, overlap)
    chosen = {gpus: model.chosen(gpus) for gpus in GPUS}
    rows = {link: [model.row(gpus, chosen[gpus], link) for gpus in GPUS] for link in LINKS}
    print("\n".join(assumed(model)))
    for link, own in rows.items():
        print("\n".join(main_table(model, link, own)), flush=True)
    print(recipe_micro_batch(model))
    print(larger_buckets(model))
    print("\n".join(stages_table(model)))
    print("\n".join(groups_table(model.config)))
    memory = {
        stage: [model.memory(gpus, stage) for gpus in GPUS]
        for stage in stage_variants(model.config)
    }
    draw(rows, memory, model, picture)
    print(f"\n{picture}")


def draw(
    rows: dict[StatedLink, list[Row]], memory: dict[str, list[float]], model: Model, path: Path
) -> None:
    """Left images a second, right GiB a GPU, both against GPUs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (speed, space) = plt.subplots(1, 2, figsize=(10, 4.4), constrained_layout=True)
    first = next(iter(rows.values()))[0]
    ideal = [first.images_s * gpus / first.gpus for gpus in GPUS]
    speed.plot(GPUS, ideal, color="grey", linestyle="--", linewidth=1, label="ideal, from 8 GPUs")
    for link, own in rows.items():
        last = own[-1]
        label = f"{link.name}: {efficiency_of(last, own[0]):.0%} at {last.gpus}"
        speed.plot(GPUS, [row.images_s for row in own], marker="o", markersize=4, label=label)
    speed.set(yscale="log", ylabel="images a second", title="at the stage that the plan recommends")
    for stage, sizes in memory.items():
        words = f"ZeRO {stage}" + (" too" if "teacher" in stage else "")
        space.plot(GPUS, sizes, marker="o", markersize=4, label=words)
    size = model.config.training.group_size
    space.set(ylabel="GiB a GPU", title=f"at micro-batch {size}")
    space.set_ylim(bottom=0, top=1.35 * max(memory["0"]))
    for axes in (speed, space):
        axes.set_xscale("log", base=2)
        axes.set_xticks(GPUS, [str(gpus) for gpus in GPUS])
        axes.set_xlabel("GPUs")
        axes.legend(frameon=False, fontsize=9, loc="upper left", ncols=1 if axes is speed else 2)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.suptitle(
        f"EDM2-XXL, SiDA: modelled, not measured ({model.rates.share:.0%} of "
        f"{model.rates.peak / 1e12:g} TFLOP/s a GPU assumed)"
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
