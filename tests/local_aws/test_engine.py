"""A container is told what Fargate would tell it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from local_aws import images
from local_aws.machine import LocalAws

READ = "import boto3; print(boto3.client('secretsmanager').get_secret_value(SecretId='own')['SecretString'])"


def test_a_task_reaches_aws_with_its_roles_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aws = LocalAws(tmp_path / "aws")
    aws.start()
    try:
        # given a secret, and an image whose command reads it and is told nothing of AWS
        aws.client("secretsmanager").create_secret(Name="own", SecretString="read by the task")
        context = tmp_path / "context"
        context.mkdir()
        (context / "Dockerfile").write_text("FROM python:3.13-slim\nWORKDIR /app\n")
        monkeypatch.setenv(images.STORE, str(aws.root / "images"))
        images.build(context, context / "Dockerfile", "reader:1")
        # when ECS runs it
        ecs = aws.client("ecs")
        ecs.create_cluster(clusterName="readers")
        container = {"name": "reader", "image": "reader:1", "command": ["python", "-c", READ]}
        ecs.register_task_definition(family="reader", containerDefinitions=[container])
        (task,) = ecs.run_task(cluster="readers", taskDefinition="reader")["tasks"]
        deadline = time.monotonic() + 60
        while task["lastStatus"] != "STOPPED":
            assert time.monotonic() < deadline, task
            time.sleep(0.1)
            (task,) = ecs.describe_tasks(cluster="readers", tasks=[task["taskArn"]])["tasks"]
        # then it has read it
        (output,) = (aws.root / "containers").glob("*.log")
        assert output.read_text() == "read by the task\n"
    finally:
        aws.destroy()
