"""All verbs together."""

from __future__ import annotations

from jmp_ds.cli import (
    bench_data_verbs,
    bench_verbs,
    convert_verbs,
    data_verbs,
    fetch_verb,
    launch_verb,
    model_verbs,
    recipe_verbs,
    split_verbs,
    train_verbs,
    use_verbs,
)
from jmp_ds.cli.base import new_group
from jmp_ds.cli.doctor import doctor
from jmp_ds.cli.plan_verb import plan

app = new_group("Joint multi-domain pre-training of GemNet-OC: data, training, fine-tuning, prediction.")
app.add_typer(data_verbs.group, name="data")
convert_verbs.register(data_verbs.group)
fetch_verb.register(data_verbs.group)
split_verbs.register(data_verbs.group)
bench_data_verbs.register(bench_verbs.group)
app.add_typer(bench_verbs.group, name="bench")
for verb, name in (
    (train_verbs.pretrain, "pretrain"),
    (train_verbs.finetune, "finetune"),
    (launch_verb.launch, "launch"),
    (model_verbs.evaluate, "evaluate"),
    (model_verbs.predict, "predict"),
    (use_verbs.relax, "relax"),
    (use_verbs.md, "md"),
    (use_verbs.export, "export"),
    (model_verbs.fit_scales, "fit-scales"),
    (model_verbs.import_jmp, "import-jmp"),
    (model_verbs.show, "show"),
    (recipe_verbs.recipes, "recipes"),
    (recipe_verbs.benchmark, "benchmark"),
    (plan, "plan"),
    (doctor, "doctor"),
):
    # what follows the verb that is launched belongs to that one
    settings = {"allow_interspersed_args": name != "launch"}
    app.command(name, no_args_is_help=name not in ("doctor", "recipes"), context_settings=settings)(verb)
