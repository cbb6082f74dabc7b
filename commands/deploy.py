"""Deploy to AWS Lambda with the `sam` command."""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import shutil
from pathlib import Path

from commands.terminal import CommandFailed

STANDARD_LIBRARY_ONLY = True

ROOT = Path(__file__).resolve().parent.parent
ZIP = ROOT / "dist" / "llamafn.zip"

DESCRIPTION = """\
Deploy to AWS Lambda. What it runs, for the zip in dist/:

  ./build zip --arch x86_64
  sam deploy --template-file template.yaml --stack-name llamafn --resolve-s3 \\
      --capabilities CAPABILITY_IAM --no-fail-on-empty-changeset \\
      --parameter-overrides ModelUri=s3://bucket/model.gguf Release=<text that is new each time>

Release is added by ./build deploy: the zip's digest and the parameters'. With SnapStart=yes it has to change whenever
anything does, or the snapshot of the deployment before goes on serving.

For an image:

  ./build image --target lambda --tag <account>.dkr.ecr.<region>.amazonaws.com/llamafn:1
  aws ecr get-login-password | docker login --username AWS --password-stdin <account>.dkr.ecr.<region>.amazonaws.com
  docker push <account>.dkr.ecr.<region>.amazonaws.com/llamafn:1
  sam deploy ... --parameter-overrides ImageUri=<account>.dkr.ecr.<region>.amazonaws.com/llamafn:1

Afterwards:

  sam list stack-outputs --stack-name llamafn
  sam logs --stack-name llamafn --tail
  sam delete --stack-name llamafn

`sam` is the command of PyPI's aws-sam-cli (pip install aws-sam-cli, in an environment of its own). It takes credentials
and region from where the AWS tools take them. template.yaml lists the parameters.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = DESCRIPTION
    parser.add_argument("--stack-name", default="llamafn", help="default: %(default)s")
    parser.add_argument("--print", action="store_true", help="only print the command")
    parser.add_argument("parameters", nargs="*", metavar="Name=value", help="as in template.yaml")


def run(arguments: argparse.Namespace) -> int:
    command = deploy_command(arguments.stack_name, arguments.parameters, ZIP)
    # Keys belong neither on a screen nor into a log of CI.
    print(shlex.join("ApiKeys=..." if part.startswith("ApiKeys=") else part for part in command), flush=True)
    if arguments.print:
        return 0
    if shutil.which("sam") is None:
        raise CommandFailed("There is no sam on PATH.", hint="pip install aws-sam-cli, in an environment of its own.")
    os.chdir(ROOT)
    os.execvp("sam", command)


def deploy_command(stack: str, parameters: list[str], archive: Path) -> list[str]:
    """The `sam` command line.

    Raises:
        CommandFailed: the zip is not there, or a parameter has no name.
    """
    if bad := [parameter for parameter in parameters if "=" not in parameter]:
        raise CommandFailed(f"{bad[0]!r}: expected Name=value, as MemorySize=3538.")
    if not archive.exists():
        # Also for an image: sam uploads what the template names, whether its condition holds or not.
        raise CommandFailed(f"There is no {archive}.", hint="./build zip makes it.")
    if not any(parameter.startswith("Release=") for parameter in parameters):
        digest = hashlib.sha256(archive.read_bytes())
        digest.update("\n".join(sorted(parameters)).encode())
        parameters = [*parameters, f"Release={digest.hexdigest()[:32]}"]
    options = ["--resolve-s3", "--capabilities", "CAPABILITY_IAM", "--no-fail-on-empty-changeset"]
    return [
        *("sam", "deploy", "--template-file", str(ROOT / "template.yaml"), "--stack-name", stack),
        *(*options, "--parameter-overrides", *parameters),
    ]
