"""What a loader's steps draw, for tests that hold it against the mixture."""

from __future__ import annotations

from jmp_ds.data.loading import Step, TrainLoader

#: Epoch, number of the source, repetition, index in the store.
Drawn = tuple[int, int, int, int]


def drawn(loader: TrainLoader, step: Step) -> list[Drawn]:
    """This rank's structures of a step as the mixture numbers them; their records must be those of the batches.

    Records are recognised by identities that end in their number in the store (`c17`, `s3`).
    """
    plan, found = step.plan, []
    items = loader.mixture.items(step.epoch, plan.start, plan.stop)
    for micro, batch in enumerate(step.batches):
        places = plan.part(micro, loader.loading.rank)
        assert len(batch.ids) == len(places)
        for place, id_, task in zip(places, batch.ids, batch.task.tolist(), strict=True):
            number = int(items.dataset[place])
            source = loader.sources[number]
            row = int(source.indices[items.index[place : place + 1]][0])
            assert id_.lstrip("abcdefghijklmnopqrstuvwxyz") == str(row)
            assert batch.task_names[task] == source.task
            found.append((step.epoch, number, int(items.repetition[place]), int(items.index[place])))
    return found


def whole_run(loader: TrainLoader) -> set[Drawn]:
    """Everything that a whole run draws, once each: every repetition is whole but the last of an epoch."""
    everything = set()
    for epoch in range(loader.epochs):
        items = loader.mixture.items(epoch, 0, loader.epoch_length)
        rows = zip(items.dataset.tolist(), items.repetition.tolist(), items.index.tolist(), strict=True)
        everything |= {(epoch, *row) for row in rows}
    assert len(everything) == loader.total
    return everything
