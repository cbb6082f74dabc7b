"""Show what template.yaml becomes, or check it: translated by SAM, and linted for every set of resources."""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from commands.terminal import CommandFailed, step

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "template.yaml"
REGION = "eu-west-1"

Parameters = Mapping[str, str]

SNAP_START = {"SnapStart": "yes", "Release": "1"}
IMAGE = {"ImageUri": "123456789012.dkr.ecr.eu-west-1.amazonaws.com/llamafn:1"}
# Each group's choices change which resources there are, or, in the last, nearly every property.
CHOICES: tuple[tuple[Parameters, ...], ...] = (
    ({}, SNAP_START, IMAGE),
    ({}, {"AuthType": "NONE", "Public": "yes"}),
    ({}, {"KeepAliveSchedule": "rate(5 minutes)"}),
    (
        {},
        {
            "ModelUri": "s3://bucket/models/model.gguf",
            "ModelSha256": "0" * 64,
            "SnapshotUri": "s3://bucket/snapshots",
            "DefaultSystem": "Be brief.",
            "Stream": "no",
            "ApiKeys": "secret",
            "Architecture": "arm64",
            "PythonVersion": "python3.14",
            "ReservedConcurrency": "4",
            "AlarmTopicArn": "arn:aws:sns:eu-west-1:123456789012:errors",
        },
        {"ModelUri": "s3://bucket/model-00001-of-00002.gguf", "ModelObjects": "bucket/model-*"},
    ),
)
# Has to be refused, each by the rule that is named.
REFUSED: tuple[tuple[str, Parameters], ...] = (
    ("SnapStartTmp", {**SNAP_START, "TmpSize": "513"}),
    ("SnapStartZip", {**SNAP_START, **IMAGE}),
    ("SnapStartPython", {**SNAP_START, "PythonVersion": "python3.11"}),
    ("SnapStartRelease", {"SnapStart": "yes"}),
    ("NotOpenByAccident", {"AuthType": "NONE"}),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check", action="store_true", help="translate and lint every combination; print problems only"
    )
    parser.add_argument(
        "parameters", nargs="*", metavar="Name=value", help="print the resources that these parameters give"
    )


def run(arguments: argparse.Namespace) -> int:
    if not arguments.check:
        print(json.dumps(concrete(translated(), _parsed(arguments.parameters)), indent=2))
        return 0
    template = translated()
    problems = [
        f"{_said(parameters)}: expected to be refused by {rule}, found {broken_rules(template, parameters)}"
        for rule, parameters in REFUSED
        if broken_rules(template, parameters) != [template["Rules"][rule]["Assertions"][0]["AssertDescription"]]
    ]
    problems += lint(template)
    accepted = list(combinations())
    with step(f"Linting {len(accepted)} combinations"):
        for parameters in accepted:
            found = [*broken_rules(template, parameters), *lint(concrete(template, parameters))]
            problems += [f"{_said(parameters)}: {problem}" for problem in found]
    print("\n".join(problems) or f"template.yaml is good: {len(accepted)} combinations, {len(REFUSED)} refused.")
    return 1 if problems else 0


def combinations() -> Iterator[dict[str, str]]:
    """Each set of parameters that is checked."""
    for chosen in itertools.product(*CHOICES):
        yield {name: value for group in chosen for name, value in group.items()}


def _parsed(arguments: list[str]) -> dict[str, str]:
    if bad := [argument for argument in arguments if "=" not in argument]:
        raise CommandFailed(f"{bad[0]}: expected Name=value, as MemorySize=3538.")
    return dict(argument.split("=", 1) for argument in arguments)


def _said(parameters: Parameters) -> str:
    return " ".join(f"{name}={value}" for name, value in parameters.items()) or "the defaults"


def translated() -> dict[str, Any]:
    """template.yaml as CloudFormation gets it, translated by the library that SAM's own service runs.

    Raises:
        samtranslator's InvalidDocumentException: SAM would not take it.
    """
    from samtranslator.translator.transform import transform
    from samtranslator.yaml_helper import yaml_parse

    template = yaml_parse(TEMPLATE.read_text(encoding="utf-8"))
    # `sam deploy` uploads the zip, and puts its address there.
    template["Resources"]["ZipFunction"]["Properties"]["CodeUri"] = "s3://bucket/llamafn.zip"
    with _region():
        result: dict[str, Any] = json.loads(json.dumps(transform(template, {}, _NoManagedPolicies())))
    return result


@contextlib.contextmanager
def _region() -> Iterator[None]:
    """The translator wants to know a region, and asks boto3, which asks the environment."""
    name = "AWS_DEFAULT_REGION"
    before = os.environ.get(name)
    os.environ[name] = REGION
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class _NoManagedPolicies:
    def load(self) -> dict[str, str]:
        return {}


def lint(template: Mapping[str, Any]) -> list[str]:
    """What cfn-lint finds."""
    from cfnlint.api import lint as cfn_lint
    from cfnlint.config import ManualArgs

    found = cfn_lint(json.dumps(template, indent=1), config=ManualArgs(regions=[REGION]))
    return [f"{match.rule.id} {match.message} ({'/'.join(map(str, match.path or ()))})" for match in found]


def broken_rules(template: Mapping[str, Any], parameters: Parameters) -> list[str]:
    """The descriptions of the assertions that these parameters fail, as CloudFormation would say them."""
    evaluation = _Evaluation(template, parameters)
    return [
        assertion["AssertDescription"]
        for rule in template.get("Rules", {}).values()
        if evaluation.value(rule["RuleCondition"])
        for assertion in rule["Assertions"]
        if not evaluation.value(assertion["Assert"])
    ]


def concrete(template: Mapping[str, Any], parameters: Parameters) -> dict[str, Any]:
    """The template that these parameters leave: no parameter and no condition is in it any more."""
    evaluation = _Evaluation(template, parameters)
    resources = {
        name: evaluation.value({key: value for key, value in resource.items() if key != "Condition"})
        for name, resource in template["Resources"].items()
        if "Condition" not in resource or evaluation.condition(resource["Condition"])
    }
    outputs = evaluation.value(template["Outputs"])
    return {"AWSTemplateFormatVersion": "2010-09-09", "Resources": resources, "Outputs": outputs}


class _Absent:
    """What `AWS::NoValue` stands for: the property is not there."""


class _Evaluation:
    """CloudFormation's functions, as far as they depend on nothing but parameters."""

    def __init__(self, template: Mapping[str, Any], parameters: Parameters) -> None:
        declared = template["Parameters"]
        if unknown := set(parameters) - set(declared):
            raise CommandFailed(f"template.yaml has no parameter {', '.join(sorted(unknown))}.")
        self._parameters = {name: str(parameters.get(name, declared[name]["Default"])) for name in declared}
        self._conditions = template["Conditions"]

    def condition(self, name: str) -> bool:
        return bool(self.value(self._conditions[name]))

    def value(self, node: Any) -> Any:
        if isinstance(node, list):
            return [value for value in map(self.value, node) if value is not _Absent]
        if not isinstance(node, dict):
            return copy.copy(node)
        if len(node) == 1:
            name, argument = next(iter(node.items()))
            if name == "Ref" and argument == "AWS::NoValue":
                return _Absent
            if name == "Ref" and argument in self._parameters:
                return self._parameters[argument]
            if name == "Condition" and isinstance(argument, str):
                return self.condition(argument)
            if name == "Fn::If":
                return self.value(argument[1] if self.condition(argument[0]) else argument[2])
            if name in FUNCTIONS:
                values = self.value(argument)
                if not _has_reference(values):
                    return FUNCTIONS[name](values)
                return {name: values}
        values = {name: self.value(value) for name, value in node.items()}
        return {name: value for name, value in values.items() if value is not _Absent}


FUNCTIONS: dict[str, Any] = {
    "Fn::Equals": lambda values: values[0] == values[1],
    "Fn::Not": lambda values: not values[0],
    "Fn::And": all,
    "Fn::Or": any,
    "Fn::Contains": lambda values: values[1] in values[0],
    "Fn::Select": lambda values: values[1][int(values[0])],
    "Fn::Split": lambda values: values[1].split(values[0]),
    "Fn::Join": lambda values: values[0].join(values[1]),
}


def _has_reference(values: Any) -> bool:
    if isinstance(values, dict):
        return True
    return isinstance(values, list) and any(map(_has_reference, values))
