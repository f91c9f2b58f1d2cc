"""The schedule of a run, in one line."""

from __future__ import annotations

from amdim_fast.training.recipes import Recipe

LONGEST_WARMUP = 0.1  # of the run


def describe_schedule(recipe: Recipe, images: int) -> str:
    """Steps, epochs, learning rate, warm-up and decay over ``images`` training images.

    Says too which milestones the run does not reach, and that the warm-up is longer than a tenth of
    it.
    """
    epoch, steps = recipe.steps_per_epoch(images), recipe.total_steps(images)
    epochs = f"{round(steps / epoch, 2):,.12g} epochs of {epoch:,}"
    rate = f"learning rate {recipe.learning_rate:g}"
    if recipe.warmup_steps:
        rate += f" after {recipe.warmup_steps:,} steps of warm-up"
    reached = [milestone for milestone in recipe.milestones if milestone * epoch < steps]
    if reached:
        starts = [f"{milestone * epoch:,}" for milestone in sorted(reached)]
        rate += f", times {recipe.decay_factor:g} from step {' and '.join(starts)}"
    line = f"schedule: {steps:,} steps, {epochs}, {recipe.batch_size:,} images each; {rate}"
    late = sorted(set(recipe.milestones) - set(reached))
    if late:
        line += f"; the run ends before the milestones {', '.join(map(str, late))}"
    if recipe.warmup_steps > LONGEST_WARMUP * steps:
        line += (
            f"; the warm-up is longer than a tenth of the run: --warmup-steps {steps // 10} is that"
        )
    return line
