"""Make a study's folder, images and records ready to be trained."""

from __future__ import annotations

import io
import shlex
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from fasttransfer.core.errors import InputError
from fasttransfer.core.files import cache_folder, hold_lock, make_folder, replace_file
from fasttransfer.core.progress import Log
from fasttransfer.pipelines.mean_images import load_mean_image
from fasttransfer.pipelines.store import Store
from fasttransfer.pipelines.streams import select_task_images
from fasttransfer.pipelines.verification import verify
from fasttransfer.pipelines.views import UNLIMITED
from fasttransfer.study import environment, images, paths
from fasttransfer.study.cells import TASKS
from fasttransfer.study.configuration import Study
from fasttransfer.study.records import Records
from fasttransfer.training.checkpoint import load_end, network_stamp, save_pretrained
from fasttransfer.training.cohort_builder import StudyContext
from fasttransfer.training.study_plan import (
    StudyPlan,
    command_words,
    make_study,
    read_study,
    require_feeds,
    require_same,
)


def lock_folder(out: Path) -> AbstractContextManager[None]:
    """Hold the folder: two runs at once would train the same networks twice.

    Raises:
        InputError: another process holds it.
    """

    def refuse() -> None:
        raise InputError(f"{out}: another run is working here: wait for it, or choose another --out")

    return hold_lock(paths.lock_file(out), refuse)


def open_stores(plan: StudyPlan, log: Log) -> dict[str, Store]:
    """Return task -> the store of its images, prepared unless that is done; the same for both where the source is.

    Raises:
        InputError: an image cannot be decoded; a class has no images; DALI is needed and not installed.
    """
    stores: dict[str, Store] = {}
    require_feeds(plan)
    for task in plan.data_sets:
        source = plan.sources[task]
        stores[task] = images.open_store(
            source.images,
            plan.recipe.network.store,
            kind=source.kind,
            bad_images=plan.choices.bad_images,
            device=plan.device,
            log=log,
        )
    stores = {task: stores.get(task, stores["A"]) for task in TASKS}
    for task, store in stores.items():
        store.require_both_parts(plan.classes[task])
    return stores


def open_study(plan: StudyPlan, stores: Mapping[str, Store], out: Path) -> StudyContext:
    """Return the study of `plan` on the images in `stores`, created in folder `out` unless it is there.

    A study that is there keeps the place where its images were when it began: its weights carry a digest of it.

    Raises:
        InputError: another study, or something else, is in `out`.
    """
    study = make_study(plan, {task: store.digest for task, store in stores.items()})
    if begun := read_study(out):
        require_same(begun, study, out)
        study = study.at_place_of(begun)
    else:
        for name in paths.WORKING_FOLDERS:
            make_folder(out / name)
        study.write(paths.study_file(out))
    if plan.weights is not None:
        save_pretrained(out, plan.weights)
    return StudyContext(study, out, {task: store.folder for task, store in stores.items()}, plan.classes)


def verify_stores(plan: StudyPlan, stores: Mapping[str, Store], log: Log) -> Mapping[str, Store]:
    """Read all images once before networks are trained on them; prepare those again that are in the cache and damaged.

    Returns:
        task -> the store to use: a damaged one stays mapped where it was opened.

    Raises:
        InputError: a store that the user named is damaged.
    """
    for task in plan.data_sets:
        try:
            verify(stores[task], log, decode=False)
        except InputError as error:
            if plan.sources[task].images.store is not None:
                raise
            log(f"{error}: done now")
            shutil.rmtree(stores[task].folder)
            stores = open_stores(plan, log)
    return stores


def write_mean_images(setting: StudyContext, stores: Mapping[str, Store]) -> None:
    """Write the mean image of each task's training images into the study's folder, where its networks subtract them."""
    if setting.study.recipe.network.channel_mean is not None:
        return
    for task, classes in setting.classes.items():
        path, contents = paths.mean_file(setting.folder, task), io.BytesIO()
        np.save(contents, load_mean_image(stores[task], classes, setting.study.per_class, cache_folder()))
        if not path.exists() or path.read_bytes() != contents.getvalue():  # missing or damaged
            with replace_file(path) as file:
                file.write(contents.getvalue())


def prepare_records(
    book: Records, plan: StudyPlan, stores: Mapping[str, Store], setting: StudyContext
) -> tuple[dict[str, int], dict[str, int]]:
    """Write into the records which networks are planned and what the images are; agree them with the weights on disk.

    Returns:
        task -> number of training images, and of validation images.
    """
    study, out = setting.study, setting.folder
    book.plan(study.cells())
    train, val = {}, {}
    for task, classes in plan.classes.items():
        store = stores[task]
        train[task] = len(select_task_images(store, store.train, classes, study.per_class))
        val[task] = len(select_task_images(store, store.val, classes))
    words = {c: w for task in TASKS for c in plan.classes[task] if (w := stores[task].words.get(c))}
    manifests = [stores[task].manifest for task in plan.data_sets]
    facts = {
        "command": shlex.join(["fasttransfer", *command_words(plan.choices), "--out", str(out)]),
        "classes": {task: list(classes) for task, classes in plan.classes.items()},
        "train_pictures": train,
        "val_pictures": val,
        "steps": {task: study.recipe.steps_for(count) for task, count in train.items()},
        "views": study.views or UNLIMITED,
        "weights": plan.weights.name if plan.weights else None,
        "stages": list(study.recipe.network.stages),
        "synthetic": any(manifest["synthetic"] for manifest in manifests),
        "stores": {
            task: {"kind": store.kind, "size": store.size, "source": store.manifest["source"]}
            for task, store in stores.items()
        },
        "data": {task: source.images.where for task, source in plan.sources.items()},
        "held_out": any(manifest["held_out"] for manifest in manifests),
        "refused": sum(len(manifest["refused"]) for manifest in manifests),
        "words": words,
    }
    book.describe(facts, environment.describe_environment())
    _reconcile(book, study, out)
    return train, val


def _reconcile(book: Records, study: Study, out: Path) -> None:
    """Make the records agree with the weights on disk, which decide whether a cell is done.

    A file is read as a whole and compared with its checksum at the first start after it was written or changed; those
    of a study of the paper's network are 240 MB each. Networks that others start from are verified at each use anyway.
    """
    states, verified, now_verified = book.read_ended(), book.read_verified(), []
    for cell in study.cells():
        key = cell.seed, cell.name
        state = states.get(key)
        if state in ("diverged", "skipped"):
            continue
        stamp = network_stamp(out, cell)
        if state is not None and verified.get(key) == stamp:
            continue
        messages = load_end(out, study, cell)
        if messages is None:
            if state is not None:
                book.log_event("its weights are missing or damaged: trained again", cell.label)
                book.reopen(cell)
            continue
        now_verified.append((cell, stamp))
        if state is None:
            checked, end = messages
            book.record_checks((cell, e) for e in checked.evaluations)
            book.end_cell(cell, end.state, end.steps, end.reason, end.correct)
    book.record_verified(now_verified)
