from __future__ import annotations

import copy
from typing import Any

import pytest

from commands.template import IMAGE, REFUSED, SNAP_START, broken_rules, combinations, concrete, lint, translated
from commands.terminal import CommandFailed


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return translated()


def resources(template: dict[str, Any], **parameters: str) -> dict[str, Any]:
    found: dict[str, Any] = concrete(template, parameters)["Resources"]
    return found


def statements(template: dict[str, Any], **parameters: str) -> dict[str, Any]:
    policies = resources(template, **parameters)["Role"]["Properties"]["Policies"]
    return {policy["PolicyName"]: policy["PolicyDocument"]["Statement"] for policy in policies}


def test_the_defaults_are_a_zip_behind_iam_that_streams(template: dict[str, Any]) -> None:
    found = resources(template)

    assert set(found) == {"ZipFunction", "Role", "LogGroup", "Url", "ErrorAlarm"}
    assert found["Url"]["Properties"] == {
        "AuthType": "AWS_IAM",
        "InvokeMode": "RESPONSE_STREAM",
        "TargetFunctionArn": {"Fn::GetAtt": ["ZipFunction", "Arn"]},
    }
    function = found["ZipFunction"]["Properties"]
    assert function["SnapStart"] == {"ApplyOn": "None"}
    assert "ReservedConcurrentExecutions" not in function
    variables = function["Environment"]["Variables"]
    assert set(variables) == {"MODEL_IN_MEMORY", "N_CTX", "LAMBDA_STREAM", "AWS_LAMBDA_EXEC_WRAPPER"}


def test_without_s3_the_role_may_write_its_log_and_nothing_else(template: dict[str, Any]) -> None:
    assert statements(template) == {
        "logs": [
            {
                "Effect": "Allow",
                "Action": ["logs:CreateLogStream", "logs:PutLogEvents"],
                "Resource": {"Fn::GetAtt": ["LogGroup", "Arn"]},
            }
        ]
    }


@pytest.mark.parametrize(
    ("parameters", "object_name"),
    [
        ({"ModelUri": "s3://bucket/models/m.gguf"}, "bucket/models/m.gguf"),
        ({"ModelUri": "s3://bucket/m-00001-of-00002.gguf", "ModelObjects": "bucket/m-*"}, "bucket/m-*"),
    ],
)
def test_a_model_in_s3_may_be_read_and_nothing_beside_it(
    template: dict[str, Any], parameters: dict[str, str], object_name: str
) -> None:
    (statement,) = statements(template, **parameters)["model"]

    assert statement["Action"] == "s3:GetObject"
    assert statement["Resource"] == {"Fn::Sub": ["arn:${AWS::Partition}:s3:::${Object}", {"Object": object_name}]}


def test_snapshots_may_be_read_and_written_under_their_prefix(template: dict[str, Any]) -> None:
    (statement,) = statements(template, SnapshotUri="s3://bucket/some/prefix")["snapshots"]

    assert statement["Action"] == ["s3:GetObject", "s3:PutObject"]
    assert statement["Resource"] == {
        "Fn::Sub": ["arn:${AWS::Partition}:s3:::${Prefix}/*", {"Prefix": "bucket/some/prefix"}]
    }


def test_snap_start_publishes_a_version_for_each_release_behind_an_alias(template: dict[str, Any]) -> None:
    first, second = (resources(template, **{**SNAP_START, "Release": release}) for release in ("1", "2"))

    assert first["ZipFunction"]["Properties"]["SnapStart"] == {"ApplyOn": "PublishedVersions"}
    assert first["ZipFunction"]["Properties"]["Environment"]["Variables"]["MODEL_IN_MEMORY"] == "1"
    assert first["Url"]["Properties"]["TargetFunctionArn"] == {"Ref": "SnapStartAlias"}
    # CloudFormation replaces a version whose description has changed.
    assert first["SnapStartVersion"]["Properties"] != second["SnapStartVersion"]["Properties"]


@pytest.mark.parametrize("parameters", [{}, IMAGE, SNAP_START])
def test_everybody_may_call_only_where_that_was_said(template: dict[str, Any], parameters: dict[str, str]) -> None:
    closed = resources(template, **parameters)
    opened = resources(template, **parameters, AuthType="NONE", Public="yes")

    assert not any(resource["Type"] == "AWS::Lambda::Permission" for resource in closed.values())
    actions = {
        resource["Properties"]["Action"]
        for resource in opened.values()
        if resource["Type"] == "AWS::Lambda::Permission" and resource["Properties"]["Principal"] == "*"
    }
    assert actions == {"lambda:InvokeFunctionUrl", "lambda:InvokeFunction"}


def test_a_schedule_comes_with_the_permission_to_call(template: dict[str, Any]) -> None:
    found = resources(template, KeepAliveSchedule="rate(5 minutes)")

    assert found["KeepAlive"]["Properties"]["ScheduleExpression"] == "rate(5 minutes)"
    assert found["KeepAlivePermission"]["Properties"]["SourceArn"] == {"Fn::GetAtt": ["KeepAlive", "Arn"]}


@pytest.mark.parametrize(("rule", "parameters"), REFUSED)
def test_what_aws_refuses_is_refused_before_anything_is_made(
    template: dict[str, Any], rule: str, parameters: dict[str, str]
) -> None:
    assert broken_rules(template, parameters) == [template["Rules"][rule]["Assertions"][0]["AssertDescription"]]


def test_what_is_checked_is_accepted(template: dict[str, Any]) -> None:
    for parameters in combinations():
        assert broken_rules(template, parameters) == []


def test_the_lint_is_of_the_translated_template_and_sees_a_mistake(template: dict[str, Any]) -> None:
    good = concrete(template, {})
    bad = copy.deepcopy(good)
    bad["Resources"]["ZipFunction"]["Properties"]["MemorySize"] = 64

    assert lint(good) == []
    assert any("64" in problem and "MemorySize" in problem for problem in lint(bad))


def test_an_unknown_parameter_is_named(template: dict[str, Any]) -> None:
    with pytest.raises(CommandFailed, match="no parameter Memory"):
        concrete(template, {"Memory": "1024"})
