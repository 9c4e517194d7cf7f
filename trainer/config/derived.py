"""What follows from a config: the mesh of its ranks, and the schedule that they run."""

from __future__ import annotations

from parallel.ranks.mesh import Mesh
from parallel.schedule.check import check
from parallel.schedule.generators import generate
from parallel.schedule.settings import Setting, SettingError
from parallel.schedule.table import Schedule, ScheduleError
from parallel.schedule.table_file import read_table
from trainer.config.schema import Config

KEYS = {
    Setting.SCHEDULE: "pipeline.schedule",
    Setting.RANKS: "mesh.pipeline",
    Setting.MICRO_BATCHES: "pipeline.micro_batches",
}


def mesh_of(config: Config) -> Mesh:
    """The layout of the ranks that `config` asks for."""
    mesh = config.mesh
    return Mesh(mesh.pipeline, mesh.expert_data, mesh.expert, mesh.context)


def schedule_of(config: Config, micro_batches: int | None = None) -> Schedule:
    """The table that `config` asks for; micro_batches: of a step with another batch than
    data.global_batch.

    Raises ScheduleError, in one line, for numbers that a schedule does not support, and for a file
    that is no table, breaks a rule, or was made for other numbers.
    """
    pipeline, ranks = config.pipeline, config.mesh.pipeline
    if pipeline.schedule_file is None:
        try:
            return generate(pipeline.schedule, ranks, micro_batches or pipeline.micro_batches)
        except SettingError as error:
            ramp = {} if micro_batches is None else {Setting.MICRO_BATCHES: "micro-batches"}
            raise ScheduleError(error.worded(KEYS | ramp)) from None
    schedule = read_table(pipeline.schedule_file)
    where = f"pipeline.schedule_file: {pipeline.schedule_file}"
    try:
        check(schedule)
    except ScheduleError as error:
        raise ScheduleError(f"{where}: {error}") from None
    for key, wanted, given in (
        ("mesh.pipeline", schedule.ranks, ranks),
        ("pipeline.micro_batches", schedule.micro_batches, micro_batches or pipeline.micro_batches),
    ):
        if wanted != given:
            raise ScheduleError(f"{where} is for {key} = {wanted}, not {given}: set {key} to it")
    return schedule
