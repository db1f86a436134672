"""All studies by name, and the plan of one or more: their own steps, then a table for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from treft.errors import ConfigError
from treft.steps.step import Plan
from treft.study.claims import chosen
from treft.study.model_rows import check_strengths
from treft.study.protocol import NotPossibleError, Study, StudyConfig
from treft.study.studies import gains, mitigations, perturbing, states, tasks, wide
from treft.study.tables import TABLE, table_step

FAMILIES = (gains, mitigations, perturbing, states, tasks, wide)
"""The files of `treft/study/studies/`; each has its studies in `STUDIES`."""


def all_studies() -> dict[str, Study]:
    """Returns every study by name, in the order of the names."""
    found = {study.name: study for family in FAMILIES for study in family.STUDIES}
    return dict(sorted(found.items()))


def find_studies(names: Iterable[str]) -> dict[str, Study]:
    """Returns the studies of these names, each once; `all` stands for every one.

    Raises:
        ConfigError: There is none of a name.
    """
    return chosen(names, all_studies())


def plan_study(study: Study, config: StudyConfig) -> Plan:
    """Returns all steps of a study with their addresses, the table last.

    Raises:
        ConfigError: the configuration cannot be run.
    """
    return _checked(Plan.of([table_step(study, config)]), config)


def plan_studies(studies: Iterable[Study], config: StudyConfig) -> Plan:
    """Returns the steps of several studies, each called `STUDY/NAME`; equal steps share an address.

    Raises:
        ConfigError: the configuration cannot be run; names the study.
    """
    return _checked(_together(_plan_within(study, config) for study in studies), config)


def plan_possible(studies: Mapping[str, Study], config: StudyConfig) -> tuple[Plan, dict[str, str]]:
    """Plan those studies that can run, as `plan_studies`, and say why each other cannot, by name.

    Raises:
        ConfigError: something is wrong in itself, such as a setting.
        DataError: a file cannot be used.
    """
    plans: list[Plan] = []
    reasons: dict[str, str] = {}
    for name, study in studies.items():
        try:
            plans.append(_plan_within(study, config))
        except NotPossibleError as error:
            reasons[name] = str(error).removeprefix(_of_study(study))
    found = _together(plans)
    return (_checked(found, config) if plans else found), reasons


def table_name(study: Study) -> str:
    """Returns the name of a study's last step in a plan of several."""
    return f"{study.name}/{TABLE}"


def _checked(plan: Plan, config: StudyConfig) -> Plan:
    if config.model is not None:
        check_strengths(config.model, plan.named.values())
    return plan


def _together(plans: Iterable[Plan]) -> Plan:
    return Plan({name: step for plan in plans for name, step in plan.named.items()})


def _of_study(study: Study) -> str:
    """Returns how an error of several studies begins."""
    return f"study {study.name}: "


def _plan_within(study: Study, config: StudyConfig) -> Plan:
    try:
        return Plan.of([table_step(study, config)], f"{study.name}/")
    except ConfigError as error:
        raise type(error)(f"{_of_study(study)}{error}") from error
